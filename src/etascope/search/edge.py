"""Where training breaks: the edge as a posterior over log rate, from trainings that failed or not.

A training at log rate x fails with probability `1 / (1 + exp(-(x - e) / w))`: the edge e is where
that is one half, and w how far luck reaches around it. A training that was judged before the
horizon speaks of the edge as it was then: that of the horizon may lie elsewhere, by a normal
shift whose spread grows with the time that was left. All three are integrated over on a grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

STEP = 0.02  # decades between two points of the grid
MARGIN = 1.0  # decades of the grid beyond the rates that were tried
WIDTHS = (0.02, 0.05, 0.1, 0.2, 0.4)  # decades; each as likely as the others
DRIFT = 0.6  # decades that the edge may shift while training becomes ten times as long
LEVEL = 0.9  # of the interval
SMALLEST, LARGEST = -323.0, 308.0  # decades: beyond them no rate can be written


def decades(low: float, high: float) -> float:
    """`log10(high / low)` of two rates, also where that ratio is no double.

    >>> decades(0.01, 1.0), round(decades(5e-324, 1e300))
    (2.0, 623)
    """
    ratio = high / low
    if 0 < ratio < math.inf:
        return math.log10(ratio)
    return math.log10(high) - math.log10(low)


class Sign(NamedTuple):
    """What one training says of the edge: its rate, the share of the horizon, whether it failed.

    A training that became non-finite has said all that it will ever say: its share is 1.
    """

    lr: float
    share: float
    failed: bool


class Edge(NamedTuple):
    """The rate at which training fails half of the time, and a 90 % interval around it.

    `lr` is None and `high` infinite where nothing failed, `low` 0 where nothing else was seen.
    """

    lr: float | None
    low: float
    high: float

    @property
    def decades(self) -> float:
        """The width of the interval."""
        known = 0 < self.low <= self.high < math.inf
        return decades(self.low, self.high) if known else math.inf


def find_edge(signs: Iterable[Sign]) -> Edge:
    """The edge that the signs tell of.

    Args:
        signs: one a training; those of rates that are merely too slow do not belong here.

    Returns:
        The median of the posterior and the interval that holds 90 % of it.

    Example:
        >>> edge = find_edge([Sign(0.1, 1.0, False), Sign(0.2, 1.0, True)])
        >>> 0.1 < edge.lr < 0.2
        True
        >>> find_edge([Sign(0.1, 1.0, False)])
        Edge(lr=None, low=0.1, high=inf)
    """
    seen = list(signs)
    passed = [sign.lr for sign in seen if not sign.failed]
    if len(passed) == len(seen):
        return Edge(None, max(passed, default=0.0), math.inf)
    logs = np.log10([sign.lr for sign in seen])
    first, last = max(logs.min() - MARGIN, SMALLEST), min(logs.max() + MARGIN, LARGEST)
    grid = np.arange(first, last, STEP)
    chances = np.zeros(len(grid))
    for share in {sign.share for sign in seen}:
        chances += _log_likelihood([s for s in seen if s.share == share], share, grid)
    weights = np.exp(chances - chances.max())
    below = np.cumsum(weights) / weights.sum()
    tail = (1 - LEVEL) / 2
    low, middle, high = (
        float(10 ** grid[int(np.searchsorted(below, q))]) for q in (tail, 0.5, 1 - tail)
    )
    return Edge(middle, low if passed else 0.0, high)


def _log_likelihood(signs: list[Sign], share: float, grid: np.ndarray) -> np.ndarray:
    """log P(signs | edge) at each point of the grid, for signs of one share of the horizon."""
    x = np.log10([sign.lr for sign in signs])
    side = np.where([sign.failed for sign in signs], 1.0, -1.0)
    edge, width = grid[:, None, None], np.array(WIDTHS)[None, :, None]
    # log of the logistic function, without overflow
    each = -np.logaddexp(0.0, -side * (x - edge) / width)
    likely = np.exp(each.sum(axis=2)).mean(axis=1)
    drift = DRIFT * math.log10(1 / share)
    if drift > 0:
        reach = np.arange(-4 * drift, 4 * drift + STEP, STEP)
        bell = np.exp(-0.5 * (reach / drift) ** 2)
        pad = len(bell) // 2
        likely = np.convolve(np.pad(likely, pad, mode="edge"), bell / bell.sum(), mode="valid")
    found: np.ndarray = np.log(np.maximum(likely[: len(grid)], 1e-300))
    return found
