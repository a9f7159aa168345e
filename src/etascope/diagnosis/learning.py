"""What shows that a trial learned: its held-out loss and metric, tested against the baseline.

Four tests, of which each sees what the others miss:

- hits against the share of the most common class, by the exact binomial test;
- the loss batch by batch against that of the best constant, by the t test;
- the loss of all examples, where it is a log-likelihood: a constant distribution that is the best
  for the very labels it is tested on makes every other predictor's likelihood ratio an e-value;
- a single batch, which has no spread: by the size of the gap, which is no p-value.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from etascope.diagnosis.course import NOISE, usual_change
from etascope.diagnosis.statistics import below, binomial_above
from etascope.records import Chance, Evaluation, History

ALONE = 0.01  # level at which one trial is tested alone
# A likelihood ratio of the whole held-out set below e shows nothing, however batches scatter.
LEAST_EVIDENCE = math.exp(-1)
# A single held-out batch is clearly below the baseline by so many usual changes of the training
# loss, and by so large a share of the baseline: a model that knows nothing may by luck be better
# than the best constant by z^2 / n of a squared error (n examples, z = 3.2 at level 0.0007).
LONE_CHANGES = 5.0
LONE_EXAMPLES = 10.0
LONE_SHARE = 0.02


class Evidence(NamedTuple):
    """A trial's held-out evaluation, tested against the baseline.

    `majority` is the share of hits that the best constant has. The p-values are those of "knows
    no more than the baseline" by hits, by the losses of batches and by the likelihood of all
    examples, None where not tested. `clear` says that a single batch, which has no p-value, is
    clearly below the baseline.
    """

    history: History
    evaluation: Evaluation
    majority: float | None
    p_accuracy: float | None
    p_loss: float | None
    p_likelihood: float | None
    clear: bool

    @property
    def p(self) -> float:
        """The p-value of all tests together."""
        return _together(self.p_accuracy, self.p_loss, self.p_likelihood)

    @property
    def p_by_loss(self) -> float:
        """The p-value of the tests of the loss; that of the hits where the loss was not asked."""
        if self.by_accuracy_only:
            return _together(self.p_accuracy)
        return _together(self.p_loss, self.p_likelihood)

    @property
    def by_accuracy_only(self) -> bool:
        """Whether the loss was not asked."""
        return self.p_loss is None and self.p_likelihood is None


def _together(*values: float | None) -> float:
    """The p-value of several tests by Bonferroni's correction; 1 where none was made."""
    made = [p for p in values if p is not None]
    return min(1.0, len(made) * min(made)) if made else 1.0


def evidence_of(history: History, evaluation: Evaluation, chance: Chance) -> Evidence:
    """The tests of an evaluation that its records allow.

    The untrained network's loss is no loss of knowing nothing: one that is confident at random
    has a higher one, so beside accuracy it is not asked.
    """
    majority = dict(chance.majority).get(evaluation.examples)
    hits = majority is not None and evaluation.correct is not None
    p_accuracy = None
    if majority is not None and evaluation.correct is not None:
        p_accuracy = binomial_above(evaluation.correct, evaluation.examples, majority)
    if hits and chance.source == "initial loss":
        return Evidence(history, evaluation, majority, p_accuracy, None, None, clear=False)
    lone = len(evaluation.batch_losses) < 2
    p_likelihood = likelihood_p(evaluation, chance)
    # Batches without an example of a rare class agree by their make-up, not by what is known.
    slight = p_likelihood is not None and p_likelihood > LEAST_EVIDENCE
    p_loss = 1.0 if slight else below(gaps(evaluation, chance), 0.0)
    return Evidence(
        history,
        evaluation,
        majority if hits else None,
        p_accuracy,
        None if lone else p_loss,
        p_likelihood,
        clear=lone and p_likelihood is None and _lone_below(history, evaluation, chance),
    )


def gaps(evaluation: Evaluation, chance: Chance) -> list[float]:
    """Loss minus baseline, batch by batch where the baseline is known so."""
    ours, theirs = evaluation.batch_losses, chance.batch_losses
    if len(theirs) < len(ours):
        return [loss - chance.loss for loss in ours]
    return [loss - known for loss, known in zip(ours, theirs, strict=False)]


def gain(evaluation: Evaluation, chance: Chance) -> float:
    """How far the loss of all examples lies below the baseline on the same batches."""
    if len(evaluation.batch_losses) in (0, len(chance.batch_losses)) or not chance.batch_losses:
        return chance.loss - evaluation.loss
    below_by = gaps(evaluation, chance)
    return -math.fsum(below_by) / len(below_by) if all(map(math.isfinite, below_by)) else -math.inf


def likelihood_p(evaluation: Evaluation, chance: Chance) -> float | None:
    """The p-value of a likelihood as high as that by luck; None where the loss is no likelihood.

    `p = exp(-w n g)` for a mean gain of g nats over n examples. The labels' own shares are the
    most likely constant, so under any constant distribution of labels that do not depend on the
    inputs, the likelihood ratio `exp(n g)` of a model that has not seen them has an expectation
    of at most 1, and by Markov's inequality it exceeds 1 / p with a probability of at most p.
    Labels of one example are averaged, which keeps the expectation (a geometric mean is at most
    the arithmetic one); `w` is `chance.likelihood`.

    Source: Wasserman, Ramdas and Balakrishnan, "Universal inference", 2020 (split likelihood
    ratio test).
    """
    if chance.likelihood <= 0 or chance.source != "constant prediction":
        return None
    evidence = chance.likelihood * evaluation.examples * gain(evaluation, chance)
    return math.exp(-evidence) if evidence > 0 else 1.0


def _lone_below(history: History, evaluation: Evaluation, chance: Chance) -> bool:
    """Whether a single held-out batch lies clearly below the baseline: a rule, and no test."""
    change = usual_change(history, evaluation.step)
    gap = chance.loss - evaluation.loss
    if change is None or not math.isfinite(gap):
        return False
    if chance.loss <= 0 or evaluation.loss < 0:
        return gap > NOISE * change
    share = max(LONE_SHARE, LONE_EXAMPLES / max(evaluation.examples, 1))
    return gap > max(LONE_CHANGES * change, share * chance.loss)


def learned(
    history: History,
    evaluation: Evaluation,
    chance: Chance,
    *,
    objective: str = "loss",
    higher_is_better: bool = True,
) -> bool:
    """Whether one trial is shown to be better than the baseline, at level 0.01.

    By the loss, or by the hits where no loss of knowing nothing is known; with objective `metric`
    by the metric alone. A network far beyond the edge may name most classes right with a loss of
    any size: judged by its loss, it did not learn.
    """
    if objective != "metric":
        test = evidence_of(history, evaluation, chance)
        return test.clear or test.p_by_loss < ALONE
    p = metric_p(evaluation, chance, higher_is_better=higher_is_better)
    if p is not None:
        return p < ALONE
    known = dict(chance.metrics).get(evaluation.examples)
    if known is not None and evaluation.metric is not None:
        sign = 1.0 if higher_is_better else -1.0
        if not sign * (evaluation.metric - known) > 0:
            return False
    return learned(history, evaluation, chance)


def metric_p(evaluation: Evaluation, chance: Chance, *, higher_is_better: bool) -> float | None:
    """The p-value of "the metric is no better than that of the best constant"; None if untested.

    Of hits, or of errors where lower is better, by the exact binomial test; of another metric by
    the t test on its batches.
    """
    known = dict(chance.metrics).get(evaluation.examples)
    if known is None and higher_is_better:
        known = dict(chance.majority).get(evaluation.examples)
    if evaluation.correct is not None and known is not None:
        correct, n = evaluation.correct, evaluation.examples
        return (
            binomial_above(correct, n, known)
            if higher_is_better
            else binomial_above(n - correct, n, 1 - known)
        )
    ours, theirs = evaluation.batch_metrics, chance.batch_metrics
    if len(ours) < 2 or len(theirs) < len(ours):
        return None
    sign = 1.0 if higher_is_better else -1.0
    return below([sign * (b - a) for a, b in zip(ours, theirs, strict=False)], 0.0)
