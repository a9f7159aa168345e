"""Where the names of the rates stand beside their curves: one column, none over another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from etascope.reporting.axes import Range, apart
from etascope.reporting.views import Curve


class End(NamedTuple):
    """The end of a rate's curve, in data coordinates, and the height of its name in the column."""

    lr: float
    update: int
    value: float
    height: float


def ends(curves: Sequence[Curve], reach: Range, gap: float, *, log: bool) -> list[End]:
    """An end for each rate, of its first curve that has a finite loss.

    Args:
        curves: the curves.
        reach: the ends of the axis of the loss, their logarithms to base 10 where `log`.
        gap: the least distance between two names, as a share of the axis.
        log: whether that axis is logarithmic.
    """
    found: dict[float, tuple[int, float]] = {}
    for curve in curves:
        value = next((v for v in reversed(curve.loss.trend) if v is not None), None)
        if value is not None:
            found.setdefault(curve.lr, (curve.loss.steps[-1] + 1, value))
    places = apart(
        [math.log10(value) if log else value for _, value in found.values()],
        gap * (reach[1] - reach[0]),
        within=reach,
    )
    return [
        End(lr, update, value, 10**place if log else place)
        for (lr, (update, value)), place in zip(found.items(), places, strict=True)
    ]
