"""What became of each rate: verdicts, as pure functions of records.

Three questions, in this order (docs/verdicts.md tells the why):

1. Did the trial fail? Non-finite numbers mean `diverged`, any other failure `undecided`, and so
   do non-finite numbers that rates decades apart met at the same step.
   Otherwise its last held-out evaluation is tested against chance, by accuracy and by loss, with
   Holm's correction over all trials of the study.
2. A trial at chance is `stuck`, with three exceptions. Where the held-out examples are too few to
   tell, or where it fits its training data, it is `undecided`. Where its own loss never rose far
   it has not arrived yet: `too slow` if a larger rate learned, `undecided` if none did.
3. Rates that learned are compared with the best one, pair by pair, at the last step that both
   reached, with intervals corrected for all pairs of rates: `best`, `good` (within the
   tolerance), `too slow` (worse, and smaller than the best), or `undecided`, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from etascope.diagnosis.chance import judge_alone, overconfidence
from etascope.diagnosis.comparison import compare
from etascope.records import Chance, History, Judgement, Number, Verdict, VerdictName
from etascope.words import counted

TOLERANCE = 0.02  # of chance loss minus best loss
ALPHA = 0.05  # over all tests of one question


def judge(
    histories: Sequence[History],
    chance: Chance,
    horizon: int,
    *,
    tolerance: float = TOLERANCE,
    alpha: float = ALPHA,
    seed: int | None = None,
    confirmed: float | None = None,
) -> Judgement:
    """Judge every trial and every rate of a study.

    A trial learns if its accuracy is above the share of the most common class (exact binomial
    test), its held-out loss below the loss of knowing nothing (t test on the differences batch by
    batch), or, where the loss is a log-likelihood, that of all examples higher than luck would
    make it: p = min(1, k min(p_accuracy, p_loss, p_likelihood)) where k can be tested. A rate is
    compared with the best by the interval of their mean difference, seed by seed, of level
    1 - alpha / (k (k - 1) / 2) for k rates that learn.

    Args:
        histories: one a trial, in any order.
        chance: what knowing nothing gives on the held-out set. Where that is only the loss of the
            untrained network (its `source` is "initial loss"), to learn means to do better than
            that network, and the reasons say so.
        horizon: the step count of a full training.
        tolerance: how much worse than the best still counts as good, as a share of chance loss
            minus best loss.
        alpha: the probability, over all trials, of calling a trial at chance a learner, and
            likewise of calling a rate worse than another that is as good.
        seed: of a race, the one that rates are compared by: others are trained at few rates, and
            not as far.
        confirmed: of a race, the rate that its fresh seeds confirm.

    Returns:
        A verdict for every rate and every trial, the best rate (None if none learned) and its
        band.
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
            learners[lr] = [h for h in group if seed is None or h.trial.seed == seed]
            if not learners[lr]:
                furthest = max((trials[h.trial] for h in group), key=lambda v: v.step)
                rates[lr] = _unpaired(furthest, confirmed=lr == confirmed)
                del learners[lr]
    compared, best = compare(learners, chance, horizon, tolerance, alpha)
    for lr, verdict in compared.items():
        notes = (overconfidence(history, chance) for history in learners[lr])
        note = next(filter(None, notes), "")
        compared[lr] = replace(verdict, reason=f"{verdict.reason}; {note}") if note else verdict
    rates = dict(sorted({**rates, **compared}.items()))
    for history in histories:
        if history.trial not in trials or trials[history.trial].name == "good":
            alone = trials.get(history.trial)
            trials[history.trial] = _of_rate(history, alone, rates[history.trial.lr], horizon)
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
        if names["undecided"]:
            reason = f"{seeds}, others cannot be told: {first['undecided'].reason}"
        step = max(v.step for v in verdicts)
        provisional = any(v.provisional for v in verdicts)
        return Verdict("undecided", step, provisional, reason, evidence)
    for name in ("undecided", "too slow"):
        if names[name]:
            shown = first[name]
            return replace(shown, evidence={**shown.evidence, **evidence})
    if len(verdicts) < trials:
        reason = f"{counted(trials - len(verdicts), 'seed')} still to come"
        return Verdict("undecided", 0, True, reason)
    return None


def _unpaired(alone: Verdict, *, confirmed: bool) -> Verdict:
    """The verdict of a rate that learns, and that a race has trained with fresh seeds only."""
    if confirmed:
        reason = "the race suggests it, and with fresh seeds it came out as expected"
        return replace(alone, name="good", reason=reason)
    reason = "it learns, with fresh seeds only: there is no pair to compare with the best rate"
    return replace(alone, name="undecided", reason=reason)


def _of_rate(history: History, alone: Verdict | None, rate: Verdict, horizon: int) -> Verdict:
    """What a learning (or not yet evaluated) trial takes from the verdict of its rate."""
    evaluation = history.evaluation("valid")
    if evaluation is None or alone is None:
        return Verdict("undecided", history.step, True, "not evaluated yet")
    own: dict[str, Number] = {"valid_loss": evaluation.loss, "valid_metric": evaluation.metric}
    name, reason = rate.name, rate.reason
    if rate.name in ("diverged", "stuck"):
        name, reason = "undecided", f"this seed {alone.reason}, but of its rate {rate.reason}"
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
