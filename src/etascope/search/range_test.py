"""What the classic range test says: a curve of losses under a rising rate, and three rules.

The rate rises from step to step, equally spaced in log rate, so a curve has one noisy loss a rate
and never trains at any of them; where it is lowest depends on how fast the rate rose. The rules
are differentiated on the log ladder, take negative losses, and stop where the loss is not finite.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from etascope.records import Numbers
from etascope.search.edge import decades

SMOOTHING = 0.9  # of the moving average: about ten steps
UNSTEADY = 10  # steps until the moving average is one
NOISE = 10.0  # usual changes from one step to the next: what a rise is at least


class Suggestion(NamedTuple):
    """What a rule says over seeds.

    Attributes:
        lr: the median, None where no seed has an answer.
        each: by seed, None where the rule has no answer.
        decades: from the lowest to the highest of them.
    """

    lr: float | None
    each: tuple[float | None, ...]
    decades: float


class RangeTest(NamedTuple):
    """The curves of a range test and what may be read off them.

    Attributes:
        lrs: [step] the rates, ascending.
        losses: [seed, step] the training loss at each, nan from where it was not finite.
        smoothed: [seed, step] the same, as the rules see it.
        steepest, valley, minimum: the suggestions.
        note: how far to trust them, in words.
    """

    lrs: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    steepest: Suggestion
    valley: Suggestion
    minimum: Suggestion
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what `etascope range-test --json` prints."""
        plain = {name: getattr(self, name).tolist() for name in ("lrs", "losses", "smoothed")}
        rules = {name: getattr(self, name)._asdict() for name in ("steepest", "valley", "minimum")}
        return {**plain, **rules, "note": self.note}


def read_range_test(lrs: Sequence[float], losses: Sequence[Numbers]) -> RangeTest:
    """Read the suggestions off the curves.

    Args:
        lrs: [step] ascending.
        losses: [seed, step]; a seed may end early.

    Example:
        >>> import numpy as np
        >>> lrs = np.logspace(-5, 1, 100)
        >>> curve = 2 - np.exp(-(np.log10(lrs) + 1.5) ** 2)  # lowest at 10 ** -1.5
        >>> read_range_test(lrs, [curve]).minimum.lr < 10**-2
        True
    """
    ladder = np.asarray(lrs, float)
    raw = np.full((len(losses), len(ladder)), np.nan)
    for row, curve in enumerate(losses):
        finite = np.isfinite(np.asarray(curve, float))
        end = len(finite) if finite.all() else int(np.argmin(finite))
        raw[row, :end] = curve[:end]
    smoothed = np.stack([smooth(curve) for curve in raw])
    steepest, valley, minimum = (
        _over_seeds(rule, ladder, smoothed) for rule in (_steepest, _valley, _minimum)
    )
    note = _note((steepest, valley, minimum), len(losses))
    return RangeTest(ladder, raw, smoothed, steepest, valley, minimum, note)


def smooth(curve: np.ndarray) -> np.ndarray:
    """The moving average with its bias at the start taken out, up to where the loss blows up.

    That is where it has risen above the start by more than it had fallen below, and by more than
    its noise.
    """
    found = np.full(len(curve), np.nan)
    with np.errstate(over="ignore"):
        changes = np.abs(np.diff(curve))
    usual = float(np.nanmedian(changes)) if np.isfinite(curve).sum() > 1 else 0.0
    mean, lowest, start = 0.0, math.inf, math.nan
    for step, loss in enumerate(curve.tolist()):
        if not math.isfinite(loss):
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        value = mean / (1 - SMOOTHING ** (step + 1))
        lowest = min(lowest, value)
        if step and value - start > max(start - lowest, NOISE * usual):
            break
        found[step] = value
        start = value if step == 0 else start
    return found


def _over_seeds(
    rule: Callable[[np.ndarray, np.ndarray], float | None], lrs: np.ndarray, curves: np.ndarray
) -> Suggestion:
    each = []
    for curve in curves:
        there = np.isfinite(curve)
        each.append(rule(lrs[there], curve[there]))
    known = [lr for lr in each if lr is not None]
    if not known:
        return Suggestion(None, tuple(each), math.inf)
    middle = float(np.exp(np.median(np.log(known))))
    return Suggestion(middle, tuple(each), decades(min(known), max(known)))


def _steepest(lrs: np.ndarray, curve: np.ndarray) -> float | None:
    """Where the loss falls fastest per decade, before its lowest point.

    The first steps are left out: their average is of too few losses.
    """
    end = int(np.argmin(curve)) + 1 if len(curve) else 0
    if end < UNSTEADY + 3:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        slope = np.nan_to_num(np.gradient(curve[:end], np.log10(lrs[:end]))[UNSTEADY:])
    place = int(np.argmin(slope))
    return float(lrs[UNSTEADY + place]) if slope[place] < 0 else None


def _valley(lrs: np.ndarray, curve: np.ndarray) -> float | None:
    """Half way through the middle third of the longest falling subsequence of the curve.

    The rule of fastai's `valley`: the subsequence need not be contiguous.
    """
    if len(curve) < 3:
        return None
    # Patience sorting on the negative: tails[k] ends the falling subsequence of length k + 1.
    tails: list[float] = []
    places: list[int] = []
    before = [-1] * len(curve)
    for step, loss in enumerate(curve):
        length = bisect.bisect_left(tails, -loss)
        before[step] = places[length - 1] if length else -1
        tails[length : length + 1] = [-loss]
        places[length : length + 1] = [step]
    chain = [places[-1]]
    while before[chain[-1]] >= 0:
        chain.append(before[chain[-1]])
    first, last = chain[-1], chain[0]
    if len(chain) < 3:
        return None
    third = (last - first) / 3
    return float(lrs[first + int(third) + int(third / 2)])


def _minimum(lrs: np.ndarray, curve: np.ndarray) -> float | None:
    """A tenth of the rate where the loss is lowest."""
    if len(curve) < 3 or int(np.argmin(curve)) == 0:
        return None
    return float(lrs[int(np.argmin(curve))]) / 10


def _note(found: Sequence[Suggestion], seeds: int) -> str:
    rates = [s.lr for s in found if s.lr is not None]
    if not rates:
        return "the loss never fell: nothing can be read off this test"
    spread = max(s.decades for s in found if s.lr is not None)
    apart = decades(min(rates), max(rates))
    text = f"the three rules lie {apart:.1f} decades apart"
    if seeds > 1:
        text += f", and one rule up to {spread:.1f} decades between seeds"
    return (
        f"{text}; the answer also depends on how many steps the rate takes to rise. It trains at "
        "none of these rates: take it for where to begin, and let find decide"
    )
