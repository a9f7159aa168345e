"""The response of the final loss to the learning rate: where it is lowest, and how wide its floor.

Below the edge the loss is smooth in log rate, so a parabola through the best rate and its
neighbours says where between them the lowest loss lies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple


def lowest(scores: Mapping[float, float]) -> float:
    """The rate of the lowest score: of the parabola through the best rate and its neighbours.

    It is at most half way to a neighbour. At the border of the rates it is the best one itself.

    Example:
        >>> round(lowest({0.01: 2.0, 0.1: 1.0, 1.0: 2.0}), 6)
        0.1
    """
    lrs = sorted(lr for lr in scores if math.isfinite(scores[lr]))
    place = min(range(len(lrs)), key=lambda k: scores[lrs[k]])
    if place in (0, len(lrs) - 1):
        return lrs[place]
    low, best, high = (math.log(lr) for lr in lrs[place - 1 : place + 2])
    left, middle, right = (scores[lr] for lr in lrs[place - 1 : place + 2])
    fall, rise = (middle - left) / (best - low), (right - middle) / (high - best)
    if rise <= fall:  # a floor without any bend
        return lrs[place]
    # Newton's form of the parabola: its slope is `fall` half way to the left, `rise` to the right.
    before, after = (low + best) / 2, (best + high) / 2
    vertex = before - fall * (after - before) / (rise - fall)
    if not math.isfinite(vertex):  # the scores are too large for their slopes
        return lrs[place]
    return math.exp(min(max(vertex, before), after))


class End(NamedTuple):
    """An end of a band: the estimate, and the rates that it lies between.

    `inside` is the last rate that was seen to be in the band, `outside` the first that was seen to
    be out of it; None where the band reaches the border of what was tried.
    """

    lr: float
    inside: float
    outside: float | None


def band(scores: Mapping[float, float], centre: float, allowed: float) -> tuple[End, End]:
    """The lower and the upper end of the rates around `centre` with scores of at most `allowed`.

    Between two rates the excess over the lowest score is taken to grow with the square of the
    distance in log rate, which is exact where the response is a parabola around the lowest.

    Args:
        scores: by rate; `centre` may be among them or not, and counts as the lowest.
        centre: the rate of the lowest score.
        allowed: the largest score inside.

    Example:
        >>> low, high = band({0.01: 4.0, 0.1: 0.0, 1.0: 4.0}, 0.1, 1.0)
        >>> round(low.lr, 4), low.inside, low.outside, round(high.lr, 4)
        (0.0316, 0.1, 0.01, 0.3162)
    """
    least = min(scores.values())
    excess = {lr: score - least for lr, score in scores.items()} | {centre: 0.0}
    below = sorted((lr for lr in excess if lr <= centre), reverse=True)
    above = sorted(lr for lr in excess if lr >= centre)
    return _walk(below, excess, allowed - least), _walk(above, excess, allowed - least)


def _walk(lrs: list[float], excess: Mapping[float, float], allowed: float) -> End:
    for near, far in itertools.pairwise(lrs):
        if excess[far] > allowed:
            start, end = math.sqrt(excess[near]), math.sqrt(excess[far])
            way = (math.sqrt(allowed) - start) / (end - start)
            return End(_between(near, far, way), near, far)
    return End(lrs[-1], lrs[-1], None)


def _between(near: float, far: float, way: float) -> float:
    """The rate at a share of the way in log rate, also where the ratio of the two is no double."""
    ratio = far / near
    if 0 < ratio < math.inf:
        return float(near * ratio**way)
    return math.exp(math.log(near) * (1 - way) + math.log(far) * way)
