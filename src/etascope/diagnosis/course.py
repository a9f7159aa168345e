"""How a training went, by its own losses: whether they rose, still fall, or fit the data."""

from __future__ import annotations

import math
from statistics import median
from typing import NamedTuple

import numpy as np

from etascope.diagnosis.statistics import average
from etascope.records import Chance, History

RISE = 4.0  # times the loss at the start
EARLY = 10  # steps
NOISE = 20.0  # usual changes from one step to the next, where the loss may be negative
LEAST_LOSSES = 5  # below that, a stretch of training says nothing of its mean
FIT_LEVEL = 0.01  # of the test that a training loss is below the baseline in training
FIT_SHARE = 0.1  # of that baseline, by which the training loss lies below it at least
FALL_LEVEL = 0.01  # of the test that a training loss still falls
FALL_SHARE = 0.01  # of the baseline, by which it fell in the last quarter at least


class Fit(NamedTuple):
    """The training loss at the end, and what the best constant has on training batches."""

    loss: float
    baseline: float


def training_fit(history: History, chance: Chance, step: int | None = None) -> Fit | None:
    """The training loss over the last tenth of the steps, where it is clearly below the baseline.

    It is compared with the losses that the best constant prediction for training batches has on
    such batches, since their labels may be distributed otherwise than the held-out ones. Clearly
    is by Welch's test at level 0.01, and by a tenth of the baseline where losses are positive.

    Args:
        history: the trial.
        chance: the baseline; where its `train_losses` are empty nothing is shown.
        step: the last step to look at; by default all.
    """
    losses = _last(history, step, 0.1)
    known = np.array(chance.train_losses)
    if len(losses) < LEAST_LOSSES or len(known) < 2 or not np.isfinite(known).all():
        return None
    loss, baseline = average(losses.tolist()), average(known.tolist())
    near = loss > (1 - FIT_SHARE) * baseline if baseline > 0 and loss >= 0 else loss >= baseline
    if near or welch_below(losses, known) >= FIT_LEVEL:
        return None
    return Fit(loss, baseline)


def still_falls(history: History, chance: Chance) -> bool:
    """Whether the training loss of the last quarter is clearly below that of the one before."""
    both = _last(history, None, 0.5)
    before, after = both[: len(both) // 2], both[len(both) // 2 :]
    if len(before) < LEAST_LOSSES:
        return False
    fall = average(before.tolist()) - average(after.tolist())
    return fall > FALL_SHARE * abs(chance.loss) and welch_below(after, before) < FALL_LEVEL


def usual_change(history: History, step: int | None = None) -> float | None:
    """The median change of the training loss from one step to the next; None where none is known.

    For normal noise that is 0.95 of the standard deviation of the loss of one batch.
    """
    losses = history.loss[: history.step if step is None else step]
    losses = losses[np.isfinite(losses)]
    with np.errstate(over="ignore"):  # a change beyond all numbers is an infinite one
        return float(np.median(np.abs(np.diff(losses)))) if len(losses) > 1 else None


def welch_below(values: np.ndarray, reference: np.ndarray) -> float:
    """The p-value of "the mean of `values` is not below that of `reference`", by Welch's test.

    >>> welch_below(np.array([1.0, 1.1, 0.9]), np.array([2.0, 2.2, 1.8])) < 0.01
    True
    """
    from scipy.special import stdtr

    if len(values) < 2 or len(reference) < 2:
        return 1.0
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows tells nothing
        parts = (
            float(values.var(ddof=1)) / len(values),
            float(reference.var(ddof=1)) / len(reference),
        )
        gap = average(values.tolist()) - average(reference.tolist())
    total = sum(parts)
    if not (math.isfinite(total) and math.isfinite(gap)):
        return 1.0
    if total == 0.0:
        return 0.0 if gap < 0 else 1.0
    shares = [part / total for part in parts]
    df = 1 / sum(
        s * s / (n - 1) for s, n in zip(shares, (len(values), len(reference)), strict=True)
    )
    return float(stdtr(df, gap / math.sqrt(total)))


def rise(history: History, chance: Chance) -> tuple[int, float] | None:
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


def _last(history: History, step: int | None, share: float) -> np.ndarray:
    """The finite training losses of the last `share` of the steps, of ten steps at least."""
    losses = history.loss[: history.step if step is None else step]
    count = max(EARLY, math.ceil(share * len(losses)))
    last: np.ndarray = losses[-count:]
    finite: np.ndarray = last[np.isfinite(last)]
    return finite
