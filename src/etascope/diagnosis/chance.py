"""One trial against chance: did it fail, has it not arrived yet, or does it learn?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import numpy as np

from etascope.diagnosis.statistics import (
    below,
    binomial_above,
    binomial_highest,
    holm,
    mean_lowest,
)
from etascope.records import Chance, Evaluation, History, Number, TrialId, Verdict, VerdictName
from etascope.words import number, share

UNTRAINED = "better than chance only means better than the untrained network here"
CONSTANT = {
    "given": "the loss of knowing nothing as it was given",
    "constant prediction": "the loss of the best constant prediction",
    "initial loss": "the loss of the untrained network, which is all that is known of chance",
}
RISE = 4.0  # times the loss at the start
EARLY = 10  # steps
ALONE = 0.01  # level at which one trial is tested alone
NOISE = 20.0  # usual changes from one step to the next, where the loss may be negative


class Tested(NamedTuple):
    """A trial's last evaluation, tested against chance.

    `majority` is the share of hits that the best constant has. `p_accuracy` and `p_loss` are the
    p-values of "knows no more than chance" by accuracy and by loss, None where not tested.
    """

    history: History
    evaluation: Evaluation
    majority: float | None
    p_accuracy: float | None
    p_loss: float | None

    @property
    def p(self) -> float:
        """The p-value of both tests together, by Bonferroni's correction."""
        found = [p for p in (self.p_accuracy, self.p_loss) if p is not None]
        return min(1.0, len(found) * min(found, default=1.0))


class Learned(NamedTuple):
    """Of the trials of a study that learn: the largest rate and the lowest held-out loss."""

    largest_lr: float
    lowest_loss: float


def beats_untrained_only(chance: Chance) -> bool:
    """Whether better than chance can only mean better than the untrained network."""
    return chance.source == "initial loss" and not chance.majority


def judge_alone(
    histories: Sequence[History], chance: Chance, horizon: int, alpha: float
) -> dict[TrialId, Verdict]:
    """Failed trials get their verdict, learners a preliminary `good`, unseen ones none."""
    verdicts: dict[TrialId, Verdict] = {}
    tests: list[Tested] = []
    for history in histories:
        evaluation = history.evaluation("valid")
        if history.failure is not None:
            verdicts[history.trial] = _of_failure(history)
        elif evaluation is not None:
            tests.append(_tested(history, evaluation, chance))
    learned = holm([test.p for test in tests], alpha)
    learners = [test for test, yes in zip(tests, learned, strict=True) if yes]
    others = None
    if learners:
        lowest = min(test.evaluation.loss for test in learners)
        others = Learned(max(test.history.trial.lr for test in learners), lowest)
    learns = "does better than the untrained network" if beats_untrained_only(chance) else "learns"
    for test, yes in zip(tests, learned, strict=True):
        if yes:
            verdict = Verdict("good", test.evaluation.step, True, learns)
        else:
            verdict = _at_chance(test, chance, others, alpha)
        verdicts[test.history.trial] = replace(
            verdict,
            provisional=test.evaluation.step < horizon,
            evidence={**_evidence(test, chance), **verdict.evidence},
        )
    return verdicts


def failed(history: History, chance: Chance, step: int | None = None) -> bool:
    """Whether the held-out loss is not shown to be below chance, at the end or at `step`.

    A loss may be far above that of knowing nothing while the accuracy is not bad: then the trial
    failed all the same. Only where no loss of knowing nothing is known, but the accuracy of it
    is, the accuracy decides. One trial at a time, at level 0.01; `judge_alone` corrects for how
    many there are. A trial that became non-finite by `step` failed.
    """
    end = history.failure
    if end is not None and end.cause == "non-finite" and (step is None or end.step <= step):
        return True
    evaluation = history.evaluation("valid", step)
    if evaluation is None:
        return True
    test = _tested(history, evaluation, chance)
    p = test.p_loss if test.p_loss is not None else test.p_accuracy
    return p is None or p >= ALONE


def _of_failure(history: History) -> Verdict:
    failure = history.failure
    assert failure is not None
    evidence: dict[str, Number] = {"failed_at": failure.step, "layer": failure.layer}
    if history.peak is not None:
        evidence |= {"peak_step": history.peak[0], "peak_loss": history.peak[1]}
    name: VerdictName = "diverged" if failure.cause == "non-finite" else "undecided"
    remedy = f"; remedy: {failure.remedy}" if failure.remedy else ""
    return Verdict(name, failure.step, False, f"{failure.message}{remedy}", evidence)


def _tested(history: History, evaluation: Evaluation, chance: Chance) -> Tested:
    """By accuracy and by loss where there are classes, else by loss.

    The untrained network's loss is no loss of knowing nothing: one that is confident at random
    has a higher one, so beside accuracy it is not asked.
    """
    p_loss = below(_gaps(evaluation, chance), 0.0)
    majority = dict(chance.majority).get(evaluation.examples)
    if majority is None or evaluation.correct is None:
        return Tested(history, evaluation, None, None, p_loss)
    p_accuracy = binomial_above(evaluation.correct, evaluation.examples, majority)
    both = len(evaluation.batch_losses) > 1 and chance.source != "initial loss"
    return Tested(history, evaluation, majority, p_accuracy, p_loss if both else None)


def _gaps(evaluation: Evaluation, chance: Chance) -> list[float]:
    """Loss minus chance, batch by batch where chance is known so."""
    ours, theirs = evaluation.batch_losses, chance.batch_losses
    if len(theirs) < len(ours):
        return [loss - chance.loss for loss in ours]
    return [loss - known for loss, known in zip(ours, theirs, strict=False)]


def _evidence(test: Tested, chance: Chance) -> dict[str, Number]:
    evidence: dict[str, Number] = {
        "valid_loss": test.evaluation.loss,
        "chance_loss": chance.loss,
        "valid_examples": test.evaluation.examples,
        "p_chance": test.p,
    }
    if test.p_loss is not None:
        evidence |= {"p_loss": test.p_loss}
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


def _at_chance(test: Tested, chance: Chance, others: Learned | None, alpha: float) -> Verdict:
    """The verdict of a trial that was not shown to be better than chance."""
    step, at_chance = test.evaluation.step, _told(test, chance)
    if test.majority is None and len(test.evaluation.batch_losses) < 2:
        reason = "one held-out batch has no spread to judge by; give valid in several batches"
        return Verdict("undecided", step, False, reason)
    possible, half_way = _possible(test, chance, others, alpha)
    if (possible > half_way) if test.majority is not None else (possible < half_way):
        told = f"accuracy may be as high as {share(possible)}"
        if test.majority is None:
            told = f"it may be as low as {number(possible)}"
        few = f"too few held-out examples to tell ({number(test.evaluation.examples)})"
        evidence: dict[str, Number] = {"possible": possible, "half_way": half_way}
        return Verdict("undecided", step, False, f"{at_chance}; {told}: {few}", evidence)
    rise, peak = _rise(test.history, chance), test.history.peak
    if rise is not None:
        reason = f"{at_chance}; its training loss had risen to {_at(rise)}"
        return Verdict("stuck", step, False, reason)
    flat = f"{at_chance}; its training loss never rose far for long"
    flat += f" (peak: {_at(peak)})" if peak is not None else ""
    if others is not None and others.largest_lr > test.history.trial.lr:
        return Verdict("too slow", step, False, f"{flat}, a larger rate learns: not arrived yet")
    if others is None:
        return Verdict("undecided", step, False, f"{flat}, no rate learns yet: try larger rates")
    return Verdict("stuck", step, False, at_chance)


def _at(peak: tuple[int, float]) -> str:
    return f"{number(peak[1])} at step {number(peak[0])}"


def _told(test: Tested, chance: Chance) -> str:
    """In words: which tests did not show the trial to be better than chance."""
    loss = number(test.evaluation.loss)
    knowing_nothing = f"below {number(chance.loss)}, {CONSTANT[chance.source]}"
    if test.majority is None:
        return f"held-out loss {loss} is not significantly {knowing_nothing}"
    told = (
        f"held-out accuracy {share(test.evaluation.metric)} is not significantly above "
        f"{share(test.majority)}, the share of the most common class"
    )
    return told if test.p_loss is None else f"{told}, nor held-out loss {loss} {knowing_nothing}"


def _possible(
    test: Tested, chance: Chance, others: Learned | None, alpha: float
) -> tuple[float, float]:
    """How good the trial may be in truth, and what is half way from chance to all there is.

    By accuracy all there is to learn ends at 1. By loss it ends at the best loss of the study;
    where none learned, as far below chance as chance is from 0.
    """
    found = test.evaluation
    if test.majority is not None and found.correct is not None:
        highest = binomial_highest(found.correct, found.examples, alpha / 2)
        return highest, (test.majority + 1) / 2
    lowest = chance.loss + mean_lowest(_gaps(found, chance), alpha / 2)
    best = chance.loss - abs(chance.loss) if others is None else others.lowest_loss
    return lowest, (chance.loss + best) / 2


def _rise(history: History, chance: Chance) -> tuple[int, float] | None:
    """The peak of a training loss that rose far, for two steps of three at least; else None.

    Within the first ten steps far is measured from the first loss, since a rise mostly begins
    with the first update; later from the median of the ten too, since a loss may start high and
    soon fall. Neither counts for less than the loss of knowing nothing: a batch may be easy.
    """
    steps = np.flatnonzero(np.isfinite(history.loss))
    if not len(steps):
        return None
    loss = history.loss[steps]
    first = float(loss[0])
    with np.errstate(over="ignore"):  # what is far above the largest double is above nothing
        above = _far_above(loss, first, chance)
    # Of three neighbours the middle one is above if two of them are.
    if not (above[1:] & above[:-1]).any() and not (above[2:] & above[:-2]).any():
        return None
    peak = int(np.argmax(np.where(above, loss, -np.inf)))
    return int(steps[peak]), float(loss[peak])


def _far_above(loss: np.ndarray, first: float, chance: Chance) -> np.ndarray:
    """At which steps the loss is far above its start."""
    start = np.full(len(loss), max(chance.loss, min(first, median(loss[:EARLY].tolist()))))
    start[:EARLY] = max(chance.loss, first)
    if chance.loss > 0 and float(loss.min()) > 0:
        far = RISE * start
    else:
        far = start + NOISE * (float(np.median(np.abs(np.diff(loss)))) if len(loss) > 1 else 0.0)
    return np.asarray(loss > far)
