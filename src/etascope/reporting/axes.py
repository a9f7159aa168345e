"""Where axes begin and end and what stands at their ticks: shared by the page and the PNG files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etascope.reporting.words import rate

Range = tuple[float, float]


class Ticks(NamedTuple):
    """Positions on an axis and the text at each."""

    values: tuple[float, ...]
    texts: tuple[str, ...]


def log_ticks(low: float, high: float, most: int = 8) -> Ticks:
    """Ticks at powers of ten between `low` and `high`, thinned to `most`; as text, like 1e-5.

    >>> log_ticks(0.0005, 2).texts
    ('0.001', '0.01', '0.1', '1')
    """
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / most))
    values = tuple(10.0**k for k in range(first, last + 1, every))
    if len(values) < 2:  # less than two decades: ones, twos and fives
        fine = [m * 10.0**k for k in range(first - 1, last + 1) for m in (1, 2, 5)]
        values = tuple(v for v in fine if low <= v <= high) or values
    return Ticks(values, tuple(rate(v) if v < 1e4 else f"1e{round(math.log10(v))}" for v in values))


def log_range(values: Iterable[float | None], pad: float = 0.06) -> Range | None:
    """The decades that hold all values, with `pad` of their width added at each end.

    None where a value is not positive, or there is none: such values take a plain axis.
    """
    there = [v for v in values if v is not None]
    if not there or min(there) <= 0:
        return None
    low, high = math.log10(min(there)), math.log10(max(there))
    room = max(high - low, 0.3) * pad
    return low - room, high + room


def plain_range(values: Iterable[float | None], pad: float = 0.06) -> Range:
    """The interval that holds all values, with room; the unit interval where they lie in it."""
    there = [v for v in values if v is not None] or [0.0, 1.0]
    low, high = min(there), max(there)
    if low >= 0 and high <= 1:
        return -0.02, 1.04
    room = (high - low or abs(high) or 1.0) * pad
    return low - room, high + room


def apart(places: Sequence[float], gap: float, within: Range | None = None) -> list[float]:
    """Places moved as little as needed to lie `gap` apart, so that labels do not overlap.

    None is moved out of `within`, unless there is no room for all.

    >>> [round(p, 2) for p in apart([0.0, 0.1, 5.0], 1.0)]
    [-0.45, 0.55, 5.0]
    >>> [round(p, 2) for p in apart([0.0, 0.1, 5.0], 1.0, within=(0.0, 5.0))]
    [0.0, 1.0, 5.0]
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while len(groups) > 1 and _low(groups[-1], places, gap) < _high(groups[-2], places, gap):
            last = groups.pop()
            groups[-1] += last
    moved = list(places)
    for group in groups:
        start = _low(group, places, gap) + gap / 2
        for rank, index in enumerate(group):
            moved[index] = start + rank * gap
    if within is not None:
        low, high = within
        for rank, index in enumerate(reversed(order)):
            moved[index] = min(moved[index], high - rank * gap)
        for rank, index in enumerate(order):
            moved[index] = max(moved[index], low + rank * gap)
    return moved


def _low(group: Sequence[int], places: Sequence[float], gap: float) -> float:
    return sum(places[i] for i in group) / len(group) - gap * len(group) / 2


def _high(group: Sequence[int], places: Sequence[float], gap: float) -> float:
    return _low(group, places, gap) + gap * len(group)
