"""Where axes begin and end and what stands at their ticks: shared by the page and the PNG files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etascope.reporting.words import number, rate

Range = tuple[float, float]
SMALLEST, LARGEST = -304.0, 304.0  # powers of ten that a page and a picture can place
DECADES = 9  # that an axis of losses shows above and below what knowing nothing gives
RATES = 16  # decades that an axis of rates shows on either side of the middle one
SPANS = 100  # times the middle half of values that a plain axis shows beyond it


class Ticks(NamedTuple):
    """Positions on an axis and the text at each."""

    values: tuple[float, ...]
    texts: tuple[str, ...]


class Reach(NamedTuple):
    """What an axis shows: from `low` to `high`, their logarithms to base 10 where `log`.

    `below` and `above` are the extreme values that lie beyond its ends; they are drawn at them.
    """

    low: float
    high: float
    log: bool
    below: float | None = None
    above: float | None = None

    @property
    def ends(self) -> Range:
        """The ends as values."""
        return (10.0**self.low, 10.0**self.high) if self.log else (self.low, self.high)

    def at(self, share: float) -> float:
        """The value at a share of the way from the low end to the high one."""
        place = self.low + share * (self.high - self.low)
        return float(10.0**place) if self.log else place

    def place(self, value: float) -> float:
        """Where a value is drawn: at itself, or at the end that it lies beyond."""
        low, high = self.ends
        return min(max(value, low), high)

    def span(self, ends: Range) -> Range:
        """Where an interval is drawn."""
        return self.place(ends[0]), self.place(ends[1])

    def places(self, values: Iterable[float | None]) -> list[float | None]:
        """Where each value is drawn; None stays None."""
        return [None if value is None else self.place(value) for value in values]

    def share(self, value: float) -> float:
        """How far along the axis a value is drawn, as a position of `low` to `high`."""
        return math.log10(self.place(value)) if self.log else self.place(value)

    @property
    def beyond(self) -> list[tuple[str, float]]:
        """What lies beyond in words, and the share of the axis where to say so."""
        said = []
        if self.above is not None:
            said.append((f"↑ up to {number(self.above)}", 0.97))
        if self.below is not None:
            said.append((f"↓ down to {number(self.below)}", 0.03))
        return said


def rate_title(rates: Reach) -> str:
    """What the axis of the rates is called, with what lies beyond it.

    >>> rate_title(rate_reach([1e-3, 1e-2, 1e300]))
    'learning rate η (up to 1e300 →)'
    """
    said = [f"← down to {rate(rates.below)}"] if rates.below is not None else []
    said += [f"up to {rate(rates.above)} →"] if rates.above is not None else []
    return f"learning rate η ({', '.join(said)})" if said else "learning rate η"


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


def rate_reach(lrs: Iterable[float], pad: float = 0.06) -> Reach:
    """A logarithmic axis that holds all rates, with `pad` of its width added at each end.

    Rates very far from the middle one are drawn at its ends.

    >>> rate_reach([0.01, 1.0], 0.5)
    Reach(low=-3.0, high=1.0, log=True, below=None, above=None)
    """
    there = sorted(lr for lr in lrs if lr > 0) or [0.1, 1.0]
    low, middle, high = (math.log10(there[k]) for k in (0, (len(there) - 1) // 2, -1))
    made = _padded(max(low, middle - RATES), min(high, middle + RATES), pad)
    return _with_beyond(made, there[0], there[-1])


def loss_reach(values: Iterable[float | None], centre: float | None, pad: float = 0.06) -> Reach:
    """An axis of losses: logarithmic where it can be, and never so wide that nothing is seen.

    Losses of a training that breaks lie hundreds of decades above all others, and a loss of 0
    infinitely far below: what lies more than `DECADES` from `centre` is drawn at the end. Where a
    loss is negative the axis is a plain one.

    Args:
        values: the losses; None is left out.
        centre: the loss of knowing nothing, or None.
        pad: the share of the width that is added at each end.

    Example:
        >>> loss_reach([1e-3, 1.0, 1e200], 1.0, 0).ends
        (0.001, 1000000000.0)
    """
    there = [value for value in values if value is not None]
    positive = sorted(value for value in there if value > 0)
    if not positive or min(there) < 0 or (min(there) == 0 and positive[-1] < 100 * positive[0]):
        return plain_reach([*there, centre], pad)
    middle = math.log10(centre if centre and centre > 0 else positive[len(positive) // 2])
    # The middle of what is shown stays there, however far away all values lie.
    powers = [middle, *map(math.log10, positive)] if centre else [*map(math.log10, positive)]
    low, high = max(min(powers), middle - DECADES), min(max(powers), middle + DECADES)
    return _with_beyond(_padded(low, high, pad), min(there), max(there))


def plain_reach(values: Iterable[float | None], pad: float = 0.06) -> Reach:
    """A plain axis that holds all values, with room; the unit interval where they lie in it.

    Values very far from the middle half of them are drawn at the end.
    """
    there = sorted(v for v in values if v is not None) or [0.0, 1.0]
    low, high = there[0], there[-1]
    if low >= 0 and high <= 1:
        return Reach(-0.02, 1.04, log=False)
    first, third = (_limited(there[k * (len(there) - 1) // 4]) for k in (1, 3))
    span = third - first or abs(first) or 1.0
    low = max(_limited(low), first - SPANS * span)
    high = min(_limited(high), third + SPANS * span)
    room = (high - low or abs(high) or 1.0) * pad
    return _with_beyond(Reach(low - room, high + room, log=False), there[0], there[-1])


def _with_beyond(reach: Reach, least: float, most: float) -> Reach:
    """An axis that knows which of the extreme values lie beyond it."""
    low, high = reach.ends
    return reach._replace(below=least if least < low else None, above=most if most > high else None)


def _padded(low: float, high: float, pad: float) -> Reach:
    """A logarithmic axis with room at its ends, within what can be placed."""
    room = max(high - low, 0.3) * pad
    low, high = max(low - room, SMALLEST), min(high + room, LARGEST)
    if high - low < 0.01:  # at the end of all numbers, or without any room
        low, high = max(SMALLEST, min(low, LARGEST - 1)), min(LARGEST, max(high, SMALLEST + 1))
        low, high = (low, low + 1) if low + 1 <= LARGEST else (high - 1, high)
    return Reach(low, high, log=True)


def _limited(value: float) -> float:
    """A value that a plain axis can be made of."""
    most = float(10.0**LARGEST)
    return min(max(value, -most), most)


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
