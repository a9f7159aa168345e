"""Where the names of the rates stand beside their curves: one column, none over another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from etascope.reporting.axes import Reach, apart
from etascope.reporting.views import Curve


class End(NamedTuple):
    """The end of a rate's curve, in data coordinates, and the height of its name in the column."""

    lr: float
    update: int
    value: float
    height: float


def ends(curves: Sequence[Curve], reach: Reach, gap: float) -> list[End]:
    """An end for each rate, of its first curve that has a finite loss.

    Args:
        curves: the curves.
        reach: the axis of the loss.
        gap: the least distance between two names, as a share of the axis.
    """
    found: dict[float, tuple[int, float]] = {}
    for curve in curves:
        value = next((v for v in reversed(curve.loss.trend) if v is not None), None)
        if value is not None:
            found.setdefault(curve.lr, (curve.loss.steps[-1] + 1, reach.place(value)))
    places = apart(
        [reach.share(value) for _, value in found.values()],
        gap * (reach.high - reach.low),
        within=(reach.low, reach.high),
    )
    return [
        End(lr, update, value, 10**place if reach.log else place)
        for (lr, (update, value)), place in zip(found.items(), places, strict=True)
    ]
