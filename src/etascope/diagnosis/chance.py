"""One trial against chance: did it fail, has it not arrived yet, or does it learn?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from etascope.diagnosis.advice import nothing_learned, one_answer
from etascope.diagnosis.course import Fit, rise, training_fit
from etascope.diagnosis.faults import rate_independent
from etascope.diagnosis.learning import ALONE, Evidence, evidence_of, gaps, learned
from etascope.diagnosis.statistics import binomial_highest, holm, mean_lowest
from etascope.records import Chance, History, Number, TrialId, Verdict, VerdictName
from etascope.words import number, share

UNTRAINED = "better than chance only means better than the untrained network here"
CONSTANT = {
    "given": "the loss of knowing nothing as it was given",
    "constant prediction": "the loss of the best constant prediction",
    "initial loss": "the loss of the untrained network, which is all that is known of chance",
}


class Context(NamedTuple):
    """What the other trials say of one that did not learn.

    Attributes:
        largest_lr: the largest rate that learned; None if none did.
        lowest_loss: the lowest held-out loss of those that learned.
        advice: what would help where none learned.
    """

    largest_lr: float | None
    lowest_loss: float
    advice: str


def beats_untrained_only(chance: Chance) -> bool:
    """Whether better than chance can only mean better than the untrained network."""
    return chance.source == "initial loss" and not chance.majority


def baseline_note(chance: Chance) -> str:
    """What a reader must know of the baseline where it is only the untrained network's loss.

    Returns:
        A clause without a full stop; empty where the baseline is known.

    Example:
        >>> baseline_note(Chance(4.84, "initial loss")).partition(":")[0]
        'the baseline is unknown'
        >>> baseline_note(Chance(3.07, "constant prediction"))
        ''
    """
    if chance.source != "initial loss":
        return ""
    return (
        "the baseline is unknown: no constant prediction could be worked out for this loss, so the "
        f"untrained network's loss, {number(chance.loss)}, stands for it, and a training that only "
        "learned the best constant counts as one that learned; name the baseline with chance="
    )


def judge_alone(
    histories: Sequence[History], chance: Chance, horizon: int, alpha: float
) -> dict[TrialId, Verdict]:
    """Failed trials get their verdict, learners a preliminary `good`, unseen ones none."""
    verdicts: dict[TrialId, Verdict] = {}
    tests: list[Evidence] = []
    faults = rate_independent(histories)
    for history in histories:
        evaluation = history.evaluation("valid")
        if history.failure is not None:
            verdicts[history.trial] = _of_failure(history, faults.get(history.trial))
        elif evaluation is not None:
            tests.append(evidence_of(history, evaluation, chance))
    shown = holm([test.p for test in tests], alpha)
    learns = [yes or test.clear for test, yes in zip(tests, shown, strict=True)]
    learners = [test for test, yes in zip(tests, learns, strict=True) if yes]
    context = Context(
        max((test.history.trial.lr for test in learners), default=None),
        min((test.evaluation.loss for test in learners), default=chance.loss),
        "" if learners else nothing_learned(histories, chance),
    )
    told = "does better than the untrained network" if beats_untrained_only(chance) else "learns"
    for test, yes in zip(tests, learns, strict=True):
        fit = None if yes else training_fit(test.history, chance)
        if yes:
            verdict = Verdict("good", test.evaluation.step, True, told)
        elif fit is not None:
            verdict = _overfitted(test, chance, fit)
        else:
            verdict = _at_chance(test, chance, context, alpha)
        verdicts[test.history.trial] = replace(
            verdict,
            provisional=test.evaluation.step < horizon,
            evidence={**_evidence(test, chance), **verdict.evidence},
        )
    return verdicts


def failed(
    history: History,
    chance: Chance,
    step: int | None = None,
    *,
    objective: str = "loss",
    higher_is_better: bool = True,
) -> bool:
    """Whether a trial came to nothing: by the end of its records, or at `step`.

    A trial failed if it became non-finite, or if neither its held-out set nor its training data
    show that it learned: the held-out loss is not significantly below the baseline (at level
    0.01), nor is the training loss clearly below what the best constant has in training. Only
    where no loss of knowing nothing is known, but the hits of it are, the hits decide. With
    objective `metric` the metric alone is asked on the held-out set. What fits its training data
    has not broken, whatever its held-out loss: overfitting and overconfidence are something else.

    One trial at a time; `judge_alone` corrects for how many there are. What ended for a cause that
    is not the rate's (an exception, a batch that is not finite, a worker) did not fail by its rate.

    Args:
        history: the trial.
        chance: the baseline.
        step: where to look; by default at the last evaluation.
        objective: `loss` or `metric`.
        higher_is_better: whether a larger metric is the better one.
    """
    end = history.failure
    ended = end is not None and (step is None or end.step <= step)
    if ended and end is not None and end.cause == "non-finite":
        return True
    evaluation = history.evaluation("valid", step)
    if evaluation is None:
        return not ended
    better = learned(
        history, evaluation, chance, objective=objective, higher_is_better=higher_is_better
    )
    return not better and training_fit(history, chance, evaluation.step) is None


def overconfidence(history: History, chance: Chance) -> str:
    """What to say of a trial whose hits show that it learned while its loss is above the baseline.

    Returns:
        A clause without a full stop; empty where that is not so.
    """
    evaluation = history.evaluation("valid")
    if evaluation is None or chance.source == "initial loss" or evaluation.loss < chance.loss:
        return ""
    test = evidence_of(history, evaluation, chance)
    if test.p_accuracy is None or test.p_accuracy >= ALONE:
        return ""
    return (
        f"its held-out loss, {number(evaluation.loss)}, is above {number(chance.loss)}, "
        f"{CONSTANT[chance.source]}, at an accuracy of {share(evaluation.metric)}: some answers "
        "are wrong with great confidence, which fewer steps or weight decay would mend, and which "
        "the objective metric does not count"
    )


def _of_failure(history: History, fault: str | None) -> Verdict:
    """`diverged`, or `undecided` where the rate is not to blame; `fault` says why it is not."""
    failure = history.failure
    assert failure is not None
    evidence: dict[str, Number] = {"failed_at": failure.step, "layer": failure.layer}
    if history.peak is not None:
        evidence |= {"peak_step": history.peak[0], "peak_loss": history.peak[1]}
    if fault is not None:
        return Verdict("undecided", failure.step, False, fault, evidence)
    name: VerdictName = "diverged" if failure.cause == "non-finite" else "undecided"
    remedy = f"; remedy: {failure.remedy}" if failure.remedy else ""
    return Verdict(name, failure.step, False, f"{failure.message}{remedy}", evidence)


def _evidence(test: Evidence, chance: Chance) -> dict[str, Number]:
    evidence: dict[str, Number] = {
        "valid_loss": test.evaluation.loss,
        "chance_loss": chance.loss,
        "valid_examples": test.evaluation.examples,
    }
    if not _untested(test):
        evidence |= {"p_chance": test.p}
    if test.p_loss is not None:
        evidence |= {"p_loss": test.p_loss}
    if test.p_likelihood is not None:
        evidence |= {"p_likelihood": test.p_likelihood}
    if test.p_accuracy is not None:
        evidence |= {
            "valid_metric": test.evaluation.metric,
            "majority_share": test.majority,
            "p_accuracy": test.p_accuracy,
        }
    if test.history.peak is not None:
        evidence |= {
            "initial_loss": float(test.history.loss[0]),
            "peak_step": test.history.peak[0],
            "peak_loss": test.history.peak[1],
        }
    return evidence


def _untested(test: Evidence) -> bool:
    """Whether a single held-out batch left nothing to make a p-value of."""
    return test.p_accuracy is None and test.by_accuracy_only


def _overfitted(test: Evidence, chance: Chance, fit: Fit) -> Verdict:
    """The verdict of a trial that learned its training data and nothing that holds elsewhere."""
    reason = (
        f"it fits its training data (training loss {number(fit.loss)}, where the best constant has "
        f"{number(fit.baseline)}), so the rate has not broken it, but {_told(test, chance)}: it "
        "overfits, which fewer steps, weight decay or more training data would mend"
    )
    evidence: dict[str, Number] = {
        "training_loss": fit.loss,
        "training_baseline": fit.baseline,
    }
    return Verdict("undecided", test.evaluation.step, False, reason, evidence)


def _at_chance(test: Evidence, chance: Chance, others: Context, alpha: float) -> Verdict:
    """The verdict of a trial that was not shown to be better than chance."""
    step, at_chance = test.evaluation.step, _told(test, chance)
    if one_answer(chance):
        return Verdict("undecided", step, False, nothing_learned([test.history], chance))
    few = _too_few(test, chance, others, alpha)
    if few is not None:
        return replace(few, reason=f"{at_chance}; {few.reason}")
    risen, peak = rise(test.history, chance), test.history.peak
    if risen is not None:
        reason = f"{at_chance}; its training loss had risen to {_at(risen)}"
        return Verdict("stuck", step, False, reason)
    flat = f"{at_chance}; its training loss never rose far for long"
    flat += f" (peak: {_at(peak)})" if peak is not None else ""
    if others.largest_lr is None:
        return Verdict("undecided", step, False, f"{flat}; {others.advice}")
    if others.largest_lr > test.history.trial.lr:
        return Verdict("too slow", step, False, f"{flat}, a larger rate learns: not arrived yet")
    return Verdict("stuck", step, False, at_chance)


def _too_few(test: Evidence, chance: Chance, others: Context, alpha: float) -> Verdict | None:
    """`undecided` where the held-out set is too small to say that a trial knows nothing."""
    found = test.evaluation
    if _untested(test):
        if not found.loss < chance.loss:
            return None
        reason = (
            "it is below it, but by too little for a single held-out batch, which has no spread to "
            "judge by: give valid in several batches"
        )
        return Verdict("undecided", found.step, False, reason)
    possible, half_way = _possible(test, chance, others, alpha)
    if not ((possible > half_way) if test.majority is not None else (possible < half_way)):
        return None
    what = f"accuracy may be as high as {share(possible)}"
    if test.majority is None:
        what = f"it may be as low as {number(possible)}"
    reason = f"{what}: too few held-out examples to tell ({number(found.examples)})"
    evidence: dict[str, Number] = {"possible": possible, "half_way": half_way}
    return Verdict("undecided", found.step, False, reason, evidence)


def _at(peak: tuple[int, float]) -> str:
    return f"{number(peak[1])} at step {number(peak[0])}"


def _told(test: Evidence, chance: Chance) -> str:
    """In words: which tests did not show the trial to be better than chance."""
    loss = number(test.evaluation.loss)
    knowing_nothing = f"below {number(chance.loss)}, {CONSTANT[chance.source]}"
    if test.majority is None:
        return f"held-out loss {loss} is not significantly {knowing_nothing}"
    told = (
        f"held-out accuracy {share(test.evaluation.metric)} is not significantly above "
        f"{share(test.majority)}, the share of the most common class"
    )
    return told if test.by_accuracy_only else f"{told}, nor held-out loss {loss} {knowing_nothing}"


def _possible(test: Evidence, chance: Chance, others: Context, alpha: float) -> tuple[float, float]:
    """How good the trial may be in truth, and what is half way from chance to all there is.

    By accuracy all there is to learn ends at 1. By loss it ends at the best loss of the study;
    where none learned, as far below chance as chance is from 0.
    """
    found = test.evaluation
    if test.majority is not None and found.correct is not None:
        highest = binomial_highest(found.correct, found.examples, alpha / 2)
        return highest, (test.majority + 1) / 2
    lowest = chance.loss + mean_lowest(gaps(found, chance), alpha / 2)
    nothing = others.largest_lr is None
    best = chance.loss - abs(chance.loss) if nothing else others.lowest_loss
    return lowest, (chance.loss + best) / 2
