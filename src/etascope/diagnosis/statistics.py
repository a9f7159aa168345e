"""The tests and intervals that verdicts rest on. Each is a pure function of numbers.

Losses of a training that breaks may be finite and larger than the square root of the largest
double, so their squares are not. What is squared or summed here is scaled first, by a power of
two, which changes no digit; ordinary numbers are left as they are.

The distributions come from `scipy.special`, which is loaded and called many times faster than
`scipy.stats`: a study of ten thousand trials is judged whenever it is opened.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

ORDINARY = 400  # powers of two: up to there on either side squares and sums of many are safe


def scale_of(values: Sequence[float]) -> int:
    """The power of two by which to divide values before they are squared; 0 for ordinary ones.

    >>> scale_of([1.0, -3e4]), scale_of([1e200]), scale_of([0.0, math.inf])
    (0, 665, 0)
    """
    largest = max(map(abs, values), default=0.0)
    if not math.isfinite(largest):
        largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    power = math.frexp(largest)[1]
    return power if abs(power) > ORDINARY else 0


def scaled(value: float, power: int) -> float:
    """`value * 2**power`, infinite where that is too large.

    >>> scaled(3.0, -1), scaled(-1.0, 2000)
    (1.5, -inf)
    """
    try:
        return math.ldexp(value, power)
    except OverflowError:
        return math.copysign(math.inf, value)


def average(values: Sequence[float]) -> float:
    """The mean, also of values whose sum is too large; not finite where one of them is not.

    >>> average([1.0, 2.0]), average([1.5e308, 1.5e308])
    (1.5, 1.5e+308)
    """
    power = scale_of(values)
    with np.errstate(invalid="ignore"):
        mean = float(np.mean([scaled(value, -power) for value in values] if power else values))
    return scaled(mean, power)


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample; infinite where fewer than two values are known.

    >>> deviation([1.0, 3.0]), deviation([1e200, 3e200]), deviation([1.0])
    (1.4142135623730951, 1.414213562373095e+200, inf)
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.inf
    power = scale_of(values)
    ordinary = [scaled(value, -power) for value in values] if power else values
    return scaled(float(np.std(ordinary, ddof=1)), power)


@cache
def _special() -> Any:
    """`scipy.special`. Importing it adds to the filters of warnings, which are the caller's."""
    with warnings.catch_warnings():
        import scipy.special
    return scipy.special


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
    betainc = _special().betainc

    return float(betainc(correct, examples - correct + 1, share)) if correct > 0 else 1.0


def binomial_highest(correct: int, examples: int, alpha: float) -> float:
    """The largest share of hits that `correct` of `examples` still allow, at level `1 - alpha`.

    The one-sided bound of Clopper and Pearson (The use of confidence or fiducial limits, 1934).

    >>> round(binomial_highest(0, 10, 0.025), 4), binomial_highest(10, 10, 0.025)
    (0.3085, 1.0)
    """
    betaincinv = _special().betaincinv

    if correct >= examples:
        return 1.0
    return float(betaincinv(correct + 1, examples - correct, 1 - alpha))


def below(values: Sequence[float], reference: Sequence[float] | float) -> float:
    """One-sided t test: the p-value of "the mean of `values` is not below the reference".

    With a sequence as reference the test is paired. With fewer than two values there is no
    spread to judge by and the answer is 1: nothing is shown.

    >>> below([1.0, 1.1, 0.9], 2.0) < 0.01
    True
    >>> below([1.0], 2.0)
    1.0
    """
    stdtr = _special().stdtr

    known = reference if isinstance(reference, Sequence) else [reference] * len(values)
    differences = [a - b for a, b in zip(values, known, strict=True)]
    if not 2.0**-ORDINARY < max(map(abs, differences), default=1.0) < 2.0**ORDINARY:
        differences = _scaled_differences(values, known)
    count = len(differences)
    if count < 2 or not all(map(math.isfinite, differences)):
        return 1.0
    mean = math.fsum(differences) / count
    variance = math.fsum((d - mean) ** 2 for d in differences) / (count - 1)
    if variance == 0.0:
        return 0.0 if mean < 0 else 1.0
    return float(stdtr(count - 1, mean / math.sqrt(variance / count)))


def _scaled_differences(values: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Differences of any size, in a unit of their own in which the largest is about 1."""
    power = scale_of([*values, *reference])
    pairs = zip(values, reference, strict=True)
    found = [scaled(a, -power) - scaled(b, -power) for a, b in pairs]
    power = scale_of(found)  # the values may lie close to each other
    return [scaled(difference, -power) for difference in found]


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


def pooled_deviation(table: np.ndarray) -> tuple[float, int]:
    """The standard deviation of one value beside the effects of its row and its column.

    The root of the residual mean square of the additive two-way layout `row + column + noise`,
    with its degrees of freedom; the layout may have gaps.

    Args:
        table: [rate, seed] values, nan where there is none; each row holds at least one.

    Returns:
        (deviation, degrees of freedom); (inf, 0) where nothing is left to estimate it from.

    >>> deviation, df = pooled_deviation(np.array([[0.0, 1.0, 2.0], [5.0, 6.0, 8.0]]))
    >>> round(deviation**2, 4), df
    (0.1667, 2)
    """
    there = np.isfinite(table)
    power = scale_of(table[there].tolist())
    table = np.ldexp(table, -power)
    weight = there / there.sum(1, keepdims=True)
    values = np.where(there, table, 0.0)
    values = np.where(there, values - (weight * values).sum(1, keepdims=True), 0.0)
    # With the rows' means taken out, only the columns are left to solve for.
    normal = np.diag(there.sum(0)) - weight.T @ there
    columns = np.linalg.pinv(normal, hermitian=True) @ values.sum(0)
    noise = np.where(there, values - columns + (weight @ columns)[:, None], 0.0)
    df = int(there.sum()) - len(table) - int(np.linalg.matrix_rank(normal, hermitian=True))
    if df <= 0:
        return math.inf, 0
    further = scale_of(noise[there].tolist())
    noise = np.ldexp(noise, -further)
    return scaled(math.sqrt(float((noise**2).sum()) / df), power + further), df


def mean_interval(
    values: Sequence[float],
    alpha: float,
    *,
    mean: float | None = None,
    spread: float | None = None,
    df: int | None = None,
) -> Interval:
    """Student's interval for the mean of `values`, of level `1 - alpha`.

    `mean` replaces the plain mean where a weighted one was reported, `spread` (the standard
    deviation of one value) and `df` the sample's own where they were pooled over several samples.

    >>> mean_interval([1.0, 1.0, 1.0], 0.05)
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    stdtrit = _special().stdtrit

    count = len(values)
    centre = average(values) if mean is None else mean
    if spread is None:
        spread, df = deviation(values), count - 1
    if not df or df < 1 or not (math.isfinite(spread) and math.isfinite(centre)):
        return Interval(centre, -math.inf, math.inf)
    half = -float(stdtrit(df, alpha / 2)) * (spread / math.sqrt(count))
    return Interval(centre, centre - half, centre + half)


def mean_lowest(values: Sequence[float], alpha: float) -> float:
    """The smallest mean that `values` still allow, at level `1 - alpha`.

    Student's one-sided bound. Losses have a long tail upward, which can pull that bound far below
    anything that was seen; but of a distribution whose median is not above its mean hardly all of
    many values lie above the mean, so it is no lower than the smallest of them.

    >>> mean_lowest([1.0, 1.0, 1.0], 0.025), mean_lowest([2.0, 3.0, 1e9, 2.0, 3.0, 4.0], 0.025)
    (1.0, 2.0)
    """
    low = mean_interval(values, 2 * alpha).low
    return max(low, min(values)) if 0.5 ** len(values) <= alpha else low
