"""Long series made short enough to draw, with every peak kept."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from etascope.diagnosis.statistics import average

Values = npt.NDArray[np.float64]
Drawn = tuple[float | None, ...]

LIMIT = 2000  # points of a series that are drawn one by one
TREND = 100  # bins of the mean that is drawn over them


class Series(NamedTuple):
    """A series as it is drawn; None stands where a value was not finite, and breaks the line.

    `steps` and `values` hold every point, or where there are too many the smallest and the
    largest of each bin, at the steps where they occurred. `trend` is the mean of each of at most
    `TREND` bins at the middle of the bin; a non-finite value leaves its bin out.
    """

    steps: tuple[int, ...]
    values: Drawn
    trend_steps: tuple[float, ...]
    trend: Drawn


def thin(
    steps: npt.NDArray[np.int64], values: Values, limit: int = LIMIT, *, growing: bool = False
) -> Series:
    """A series of at most `limit` points and its trend.

    With `growing` the bins widen with the step, for an axis of log steps.

    >>> thin(np.arange(4), np.array([1.0, 9.0, float("nan"), 2.0]), limit=2).values
    (1.0, 9.0)
    """
    kept = (
        np.arange(len(values)) if len(values) <= limit else _extremes(values, limit // 2, growing)
    )
    bins = _bins(len(values), TREND, growing=growing)
    means = [_mean(values[a:b]) for a, b in bins]
    middles = [float(steps[a] + steps[b - 1]) / 2 for a, b in bins]
    return Series(
        tuple(int(s) for s in steps[kept]), drawn(values[kept]), tuple(middles), drawn(means)
    )


def drawn(values: Values | list[float]) -> Drawn:
    """Five significant digits of each finite value, None for the others.

    >>> drawn([0.123456789, float("inf")])
    (0.12346, None)
    """
    return tuple(rounded(float(v), 5) if np.isfinite(v) else None for v in values)


def rounded(value: float, digits: int) -> float:
    """A number in so many significant digits; the largest doubles as they are.

    >>> rounded(1.23456, 3)
    1.23
    """
    short = float(f"{value:.{digits}g}")
    return short if math.isfinite(short) else value


def _mean(values: Values) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(np.mean(values))
    return mean if math.isfinite(mean) else average(values.tolist())


def finite(value: float | str | None) -> float | None:
    """The number, or None where it is missing or not finite.

    >>> finite("1.5"), finite("inf"), finite(None)
    (1.5, None, None)
    """
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _bins(count: int, most: int, *, growing: bool = False) -> list[tuple[int, int]]:
    if growing:
        edges = np.unique(np.geomspace(1, count + 1, most + 1).round().astype(int)) - 1
    else:
        edges = np.linspace(0, count, min(count, most) + 1).astype(int)
    return [(int(a), int(b)) for a, b in pairwise(edges)]


def _extremes(values: Values, bins: int, growing: bool) -> npt.NDArray[np.int64]:
    """The places of the smallest and largest finite value of each bin, in order."""
    kept: set[int] = set()
    finite = np.isfinite(values)
    for a, b in _bins(len(values), max(bins, 1), growing=growing):
        inside = finite[a:b]
        if inside.any():
            kept.add(a + int(np.argmin(np.where(inside, values[a:b], np.inf))))
            kept.add(a + int(np.argmax(np.where(inside, values[a:b], -np.inf))))
        else:
            kept.add(a)
    return np.array(sorted(kept), dtype=np.int64)
