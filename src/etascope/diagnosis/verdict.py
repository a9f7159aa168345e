"""What became of each rate: verdicts, as pure functions of records.

Three questions, in this order (docs/verdicts.md tells the why):

1. Did the trial fail? Non-finite numbers mean `diverged`. Otherwise its last held-out evaluation
   is tested against chance, with Holm's correction over all trials of the study.
2. A trial at chance is `stuck`, unless a larger rate learned and its own loss never rose: then it
   has not arrived yet and is `too slow`.
3. Rates that learned are compared with the best one, pair by pair, at the last step that both
   reached: `best`, `good` (within the tolerance), `too slow` (worse, and smaller than the best),
   or `undecided`, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from etascope.diagnosis.chance import judge_alone
from etascope.diagnosis.comparison import compare
from etascope.records import Chance, History, Judgement, Number, Verdict, VerdictName

TOLERANCE = 0.02  # of chance loss minus best loss
ALPHA = 0.05  # over all tests of one question


def judge(
    histories: Sequence[History],
    chance: Chance,
    horizon: int,
    *,
    tolerance: float = TOLERANCE,
    alpha: float = ALPHA,
) -> Judgement:
    """Judge every trial and every rate of a study.

    Args:
        histories: one a trial, in any order.
        chance: what knowing nothing gives on the held-out set.
        horizon: the step count of a full training.
        tolerance: how much worse than the best still counts as good, as a share of chance loss
            minus best loss.
        alpha: the probability, over all trials, of calling a trial at chance a learner, and
            likewise for the comparison of rates.
    """
    trials = judge_alone(histories, chance, horizon, alpha)
    rates: dict[float, Verdict] = {}
    learners: dict[float, list[History]] = {}
    groups: dict[float, list[History]] = {}
    for history in histories:
        groups.setdefault(history.trial.lr, []).append(history)
    for lr, group in sorted(groups.items()):
        settled = _settle([trials[h.trial] for h in group if h.trial in trials], len(group))
        if settled is not None:
            rates[lr] = settled
        else:
            learners[lr] = group
    compared, best = compare(learners, chance, horizon, tolerance, alpha)
    rates = dict(sorted({**rates, **compared}.items()))
    for history in histories:
        if history.trial not in trials or trials[history.trial].name == "good":
            trials[history.trial] = _of_rate(history, rates[history.trial.lr], horizon)
    return Judgement(rates, trials, best, _band(rates, best))


def _settle(verdicts: Sequence[Verdict], trials: int) -> Verdict | None:
    """The verdict of a rate that needs no comparison; None if it is to be compared."""
    if not verdicts:
        return Verdict("undecided", 0, True, "not evaluated yet")
    names = Counter(v.name for v in verdicts)
    failed = names["diverged"] + names["stuck"]
    seeds = f"{failed} of {len(verdicts)} seed{'s' if len(verdicts) > 1 else ''} failed"
    first = {name: next(v for v in verdicts if v.name == name) for name in names}
    evidence: dict[str, Number] = {"seeds": len(verdicts), "seeds_failed": failed}
    if 2 * failed > len(verdicts):
        name: VerdictName = "diverged" if names["diverged"] >= names["stuck"] else "stuck"
        shown = first[name]
        reason = shown.reason if len(verdicts) == 1 else f"{seeds}: {shown.reason}"
        return replace(shown, reason=reason, evidence={**shown.evidence, **evidence})
    if failed:
        reason = f"{seeds}: failing is a matter of luck here, more seeds would tell how often"
        step = max(v.step for v in verdicts)
        provisional = any(v.provisional for v in verdicts)
        return Verdict("undecided", step, provisional, reason, evidence)
    for name in ("undecided", "too slow"):
        if names[name]:
            shown = first[name]
            return replace(shown, evidence={**shown.evidence, **evidence})
    if len(verdicts) < trials:
        return Verdict("undecided", 0, True, f"{trials - len(verdicts)} seeds are still to come")
    return None


def _of_rate(history: History, rate: Verdict, horizon: int) -> Verdict:
    """What a learning (or not yet evaluated) trial takes from the verdict of its rate."""
    evaluation = history.evaluation("valid")
    if evaluation is None:
        return Verdict("undecided", history.step, True, "not evaluated yet")
    own: dict[str, Number] = {"valid_loss": evaluation.loss, "valid_metric": evaluation.metric}
    name, reason = rate.name, rate.reason
    if rate.name in ("diverged", "stuck"):
        name, reason = "undecided", f"this seed learns, but of its rate {rate.reason}"
    provisional = rate.provisional or evaluation.step < horizon
    return Verdict(name, evaluation.step, provisional, reason, {**rate.evidence, **own})


def _band(rates: Mapping[float, Verdict], best: float | None) -> tuple[float, float] | None:
    """The best rate and its unbroken run of good neighbours."""
    if best is None:
        return None
    ladder = sorted(rates)
    low = high = ladder.index(best)
    while low > 0 and rates[ladder[low - 1]].name == "good":
        low -= 1
    while high < len(ladder) - 1 and rates[ladder[high + 1]].name == "good":
        high += 1
    return ladder[low], ladder[high]
