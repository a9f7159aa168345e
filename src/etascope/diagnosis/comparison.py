"""Rates that learned, compared pair by pair with the best at the last step both reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from etascope.diagnosis.chance import UNTRAINED, beats_untrained_only
from etascope.diagnosis.statistics import (
    Interval,
    average,
    deviation,
    mean_interval,
    pooled_deviation,
)
from etascope.records import Chance, Evaluation, History, Number, Verdict, VerdictName
from etascope.words import number, rate


def compare(
    learners: Mapping[float, Sequence[History]],
    chance: Chance,
    horizon: int,
    tolerance: float,
    alpha: float,
) -> tuple[dict[float, Verdict], float | None]:
    """Compare every learning rate that learned with the best at the last step it reached.

    Two rates meet at most once, at the last step that both reached. Which pairs are looked at is
    chosen by their losses, so the intervals are corrected for all of them.
    """
    reached = {lr: _common_step(group) for lr, group in learners.items()}
    furthest = max(reached.values(), default=0)
    level = alpha / max(math.comb(len(learners), 2), 1)
    apart = Verdict("undecided", 0, True, "its seeds were not evaluated at a common step yet")
    verdicts = {lr: apart for lr, step in reached.items() if step == 0}
    best: float | None = None
    for step in sorted(set(reached.values()) - {0}, reverse=True):
        at_step = {lr: _losses(group, step) for lr, group in learners.items()}
        at_step = {lr: losses for lr, losses in at_step.items() if losses}
        leader = min(at_step, key=lambda lr: _order(_mean_loss(at_step[lr])))
        if step == furthest:
            best = leader
        allowed = tolerance * chance.loss - tolerance * _mean_loss(at_step[leader])
        allowed = allowed if 0 < allowed < math.inf else 0.0
        gaps = _gaps(at_step, leader, level)
        for lr in (lr for lr in learners if reached[lr] == step):
            verdict = _against(
                lr, leader, gaps.get(lr), allowed, step, paused=step < furthest, alpha=alpha
            )
            if verdict.name in ("best", "good") and beats_untrained_only(chance):
                verdict = replace(verdict, reason=f"{verdict.reason}; {UNTRAINED}")
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
    return average([e.loss for e in evaluations.values()])


def _order(loss: float) -> float:
    """A loss as it is ordered: what is not a number comes last."""
    return math.inf if math.isnan(loss) else loss


def _gaps(
    at_step: Mapping[float, Mapping[int, Evaluation]], leader: float, level: float
) -> dict[float, Interval]:
    """How much worse than the leader each other rate is, with intervals of level `1 - level`.

    Where the leader has several seeds the differences are paired by seed, and their variance is
    the larger of the rate's own and the one pooled over all rates: a rate with a single seed in
    common has the pooled one alone. Where the leader has one seed the differences are paired by
    held-out batch, which knows nothing of the luck of the seed.
    """
    ours = at_step[leader]
    pooled, df = _pooled(at_step) if len(ours) > 1 else (math.inf, 0)
    gaps: dict[float, Interval] = {}
    for lr, theirs in at_step.items():
        common = sorted(ours.keys() & theirs.keys())
        if lr == leader or not common:
            continue
        differences = [theirs[s].loss - ours[s].loss for s in common]
        if len(ours) > 1:
            own = deviation(differences) if len(common) > 1 else 0.0
            spread = max(own, math.sqrt(2) * pooled)
            gaps[lr] = mean_interval(differences, level, spread=spread, df=df)
        else:
            # Batches may differ in size: the losses that are reported weigh them by examples.
            pair = zip(theirs[common[0]].batch_losses, ours[common[0]].batch_losses, strict=False)
            gaps[lr] = mean_interval([a - b for a, b in pair], level, mean=differences[0])
    return gaps


def _pooled(at_step: Mapping[float, Mapping[int, Evaluation]]) -> tuple[float, int]:
    """The deviation of a loss beside the effects of rate and seed, and its degrees of freedom."""
    seeds = sorted({seed for losses in at_step.values() for seed in losses})
    table = np.full((len(at_step), len(seeds)), np.nan)
    for row, losses in enumerate(at_step.values()):
        for seed, evaluation in losses.items():
            table[row, seeds.index(seed)] = evaluation.loss
    return pooled_deviation(table[np.isfinite(table).any(axis=1)])


def _against(
    lr: float,
    leader: float,
    gap: Interval | None,
    allowed: float,
    step: int,
    *,
    paused: bool,
    alpha: float,
) -> Verdict:
    """The verdict of one rate against the leader at `step`."""
    if lr == leader:
        if not paused:
            reason = "the lowest held-out loss of the rates that were trained this far"
            return Verdict("best", step, False, reason)
        reason = f"paused at step {number(step)} with the lowest held-out loss there: "
        return Verdict("undecided", step, False, f"{reason}worth training on")
    if gap is None:
        reason = f"no seed in common with the best rate, {rate(leader)}"
        return Verdict("undecided", step, False, reason)
    evidence: dict[str, Number] = {
        "compared_with": leader,
        "gap": gap.mean,
        "gap_low": gap.low,
        "gap_high": gap.high,
        "gap_allowed": allowed,
    }
    reason = _told(gap, leader, allowed, alpha)
    if paused:
        reason = f"at step {number(step)}, where it is paused: {reason}"
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


def _told(gap: Interval, leader: float, allowed: float, alpha: float) -> str:
    """The gap in words, its interval in the same direction."""
    higher = gap.mean >= 0
    low, high = (gap.low, gap.high) if higher else (-gap.high, -gap.low)
    size = f"held-out loss {'higher' if higher else 'lower'} by {number(abs(gap.mean))}"
    sure = f" ({100 * (1 - alpha):g} % interval {number(low)} to {number(high)})"
    if math.isinf(low):
        sure = ", with nothing to tell its spread by,"
    return f"{size}{sure} than at rate {rate(leader)}; up to {number(allowed)} counts as equal"
