"""The colours and marks of every drawing: a verdict is told by its colour and by its shape.

The verdict colours are those of Okabe and Ito ("Color Universal Design", 2008), which stay apart
for colour-blind readers; on a dark ground the two darkest are lightened.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Mark(NamedTuple):
    """How a verdict looks: CSS name, colour on light and dark, and its shape thrice."""

    css: str
    light: str
    dark: str
    plotly: str
    matplotlib: str
    glyph: str


_STAR = Mark("best", "#009e73", "#1fbf92", "star", "*", "★")
MARKS = {
    "suggested": _STAR,  # of a race, in the place of the best
    "best": _STAR,
    "good": Mark("good", "#0072b2", "#4aa3df", "circle", "o", "●"),
    "too slow": Mark("slow", "#56b4e9", "#7cc8f2", "triangle-down", "v", "▼"),
    "undecided": Mark("undecided", "#7a7f87", "#9aa0a8", "diamond", "D", "◆"),
    "stuck": Mark("stuck", "#d98c00", "#f0a91f", "square", "s", "■"),
    "diverged": Mark("diverged", "#d55e00", "#ff7f32", "x", "X", "✖"),
}

# Cool for small rates, warm for large ones; each stop is readable on white and on near-black.
_STOPS = ((0x3F, 0x74, 0xC4), (0x2F, 0x97, 0x93), (0xB9, 0x85, 0x1D), (0xCF, 0x45, 0x2C))


def rate_colour(lr: float, lrs: Sequence[float]) -> str:
    """The colour of a rate, by its place between the smallest and the largest in log rate.

    >>> rate_colour(0.001, [0.001, 0.1]), rate_colour(0.1, [0.001, 0.1])
    ('#3f74c4', '#cf452c')
    """
    low, high = math.log(min(lrs)), math.log(max(lrs))
    place = (math.log(lr) - low) / (high - low) if high > low else 0.0
    return _blend(place)


def scale(stops: int = 13) -> list[tuple[float, str]]:
    """The colours of the rates as a scale from 0 to 1."""
    return [(k / (stops - 1), _blend(k / (stops - 1))) for k in range(stops)]


def _blend(place: float) -> str:
    position = place * (len(_STOPS) - 1)
    left = min(int(position), len(_STOPS) - 2)
    weight = position - left
    mixed = [
        round(a + (b - a) * weight) for a, b in zip(_STOPS[left], _STOPS[left + 1], strict=True)
    ]
    return "#{:02x}{:02x}{:02x}".format(*mixed)
