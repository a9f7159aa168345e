"""Rates that learned, compared pair by pair with the best at the last step both reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from etascope.diagnosis.statistics import Interval, mean_interval
from etascope.records import Chance, Evaluation, History, Number, Verdict, VerdictName


def compare(
    learners: Mapping[float, Sequence[History]],
    chance: Chance,
    horizon: int,
    tolerance: float,
    alpha: float,
) -> tuple[dict[float, Verdict], float | None]:
    """Compare every learning rate that learned with the best at the last step it reached."""
    reached = {lr: _common_step(group) for lr, group in learners.items()}
    furthest = max(reached.values(), default=0)
    if furthest == 0:
        return {}, None
    verdicts: dict[float, Verdict] = {}
    best: float | None = None
    for step in sorted(set(reached.values()), reverse=True):
        at_step = {lr: _losses(group, step) for lr, group in learners.items()}
        at_step = {lr: losses for lr, losses in at_step.items() if losses}
        leader = min(at_step, key=lambda lr: float(np.mean([e.loss for e in at_step[lr].values()])))
        if step == furthest:
            best = leader
        scale = tolerance * (chance.loss - _mean_loss(at_step[leader]))
        gaps = _gaps(at_step, leader, alpha)
        for lr in (lr for lr in learners if reached[lr] == step):
            verdict = _against(lr, leader, gaps.get(lr), scale, step, paused=step < furthest)
            evidence = {"valid_loss": _mean_loss(at_step[lr]), "seeds": len(at_step[lr])}
            verdicts[lr] = replace(
                verdict, provisional=step < horizon, evidence={**evidence, **verdict.evidence}
            )
    return verdicts, best


def _common_step(group: Sequence[History]) -> int:
    """The last step at which every seed of a rate was evaluated; 0 if there is none."""
    steps = [{e.step for e in h.evaluations if e.split == "valid"} for h in group]
    return max(set.intersection(*steps), default=0)


def _losses(group: Sequence[History], step: int) -> dict[int, Evaluation]:
    """The evaluation of each seed at `step`: only if every seed has one."""
    found = {h.trial.seed: h.evaluation("valid", step) for h in group}
    complete = {seed: e for seed, e in found.items() if e is not None}
    return complete if len(complete) == len(found) else {}


def _mean_loss(evaluations: Mapping[int, Evaluation]) -> float:
    return float(np.mean([e.loss for e in evaluations.values()]))


def _gaps(
    at_step: Mapping[float, Mapping[int, Evaluation]], leader: float, alpha: float
) -> dict[float, Interval]:
    """How much worse than the leader each other rate is, with Bonferroni-corrected intervals.

    With two or more common seeds the differences are paired by seed, and their variance is the
    larger of the rate's own and the one pooled over all rates. With one seed they are paired by
    held-out batch, which knows nothing of the luck of the seed.
    """
    ours = at_step[leader]
    paired: dict[float, list[float]] = {}
    for lr, theirs in at_step.items():
        common = sorted(ours.keys() & theirs.keys())
        if lr == leader or not common:
            continue
        if len(common) > 1:
            paired[lr] = [theirs[s].loss - ours[s].loss for s in common]
        else:
            pair = zip(theirs[common[0]].batch_losses, ours[common[0]].batch_losses, strict=False)
            paired[lr] = [a - b for a, b in pair]
    level = alpha / max(len(paired), 1)
    if len(ours) == 1:
        return {lr: mean_interval(d, level) for lr, d in paired.items()}
    spread = {lr: (float(np.var(d, ddof=1)), len(d) - 1) for lr, d in paired.items() if len(d) > 1}
    df = sum(n for _, n in spread.values())
    pooled = sum(v * n for v, n in spread.values()) / df if df else np.inf
    return {
        lr: mean_interval(d, level, variance=max(pooled, spread.get(lr, (0.0, 0))[0]), df=df)
        for lr, d in paired.items()
    }


def _against(
    lr: float, leader: float, gap: Interval | None, allowed: float, step: int, *, paused: bool
) -> Verdict:
    """The verdict of one rate against the leader at `step`."""
    if lr == leader:
        if not paused:
            reason = "the lowest held-out loss of the rates that were trained this far"
            return Verdict("best", step, False, reason)
        reason = f"paused at step {step} with the lowest held-out loss there: worth training on"
        return Verdict("undecided", step, False, reason)
    if gap is None:
        return Verdict("undecided", step, False, f"no seed in common with the best, {leader:g}")
    evidence: dict[str, Number] = {
        "compared_with": leader,
        "gap": gap.mean,
        "gap_low": gap.low,
        "gap_high": gap.high,
        "gap_allowed": allowed,
    }
    reason = (
        f"held-out loss {gap.mean:+.4g} ({gap.low:+.4g} to {gap.high:+.4g}) against {leader:g}, "
        f"where {allowed:.4g} is allowed"
    )
    if paused:
        reason = f"at step {step}, where it is paused: {reason}"
    name: VerdictName = "undecided"
    if gap.low > allowed and lr < leader:
        name = "too slow"
    elif gap.low > allowed:
        reason = f"it learns, but a smaller rate does better: {reason}"
    elif gap.high <= allowed and not paused:
        name = "good"
    else:
        reason = f"{reason}: more seeds or more steps would settle it"
    return Verdict(name, step, False, reason, evidence)
