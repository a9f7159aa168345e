"""The tests and intervals that verdicts rest on. Each is a pure function of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the two-sided confidence interval around it; infinite where nothing is known."""

    mean: float
    low: float
    high: float


def binomial_above(correct: int, examples: int, share: float) -> float:
    """The probability of `correct` or more hits in `examples` tries that each hit with `share`.

    The exact one-sided binomial test of "no better than `share`".

    >>> round(binomial_above(8, 10, 0.5), 4)
    0.0547
    """
    from scipy import special

    # The upper tail of the binomial distribution is a regularised incomplete beta function.
    return float(special.betainc(correct, examples - correct + 1, share)) if correct else 1.0


def below(values: Sequence[float], reference: Sequence[float] | float) -> float:
    """One-sided t test: the p-value of "the mean of `values` is not below the reference".

    With a sequence as reference the test is paired. With fewer than two values there is no
    spread to judge by and the answer is 1: nothing is shown.

    >>> below([1.0, 1.1, 0.9], 2.0) < 0.01
    True
    >>> below([1.0], 2.0)
    1.0
    """
    from scipy import special

    difference = np.asarray(values, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    if len(difference) < 2 or not np.isfinite(difference).all():
        return 1.0
    spread = float(np.std(difference, ddof=1)) / math.sqrt(len(difference))
    mean = float(np.mean(difference))
    if spread == 0.0:
        return 0.0 if mean < 0 else 1.0
    return float(special.stdtr(len(difference) - 1, mean / spread))


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which of the hypotheses are rejected by Holm's step-down procedure.

    The chance of rejecting even one true hypothesis among them stays below `alpha`
    (Holm 1979, A simple sequentially rejective multiple test procedure).

    >>> holm([0.01, 0.04, 0.03], 0.05)
    [True, False, False]
    """
    rejected = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(order):
        if p_values[index] > alpha / (len(order) - rank):
            break
        rejected[index] = True
    return rejected


def mean_interval(
    values: Sequence[float], alpha: float, *, variance: float | None = None, df: int | None = None
) -> Interval:
    """Student's interval for the mean of `values`, of level `1 - alpha`.

    `variance` and `df` replace the sample's own where they were pooled over several samples.

    >>> mean_interval([1.0, 1.0, 1.0], 0.05)
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    from scipy import special

    count = len(values)
    mean = float(np.mean(values))
    if variance is None:
        variance = float(np.var(values, ddof=1)) if count > 1 else math.inf
        df = count - 1
    if not df or not math.isfinite(variance):
        return Interval(mean, -math.inf, math.inf)
    half = float(special.stdtrit(df, 1 - alpha / 2)) * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half)
