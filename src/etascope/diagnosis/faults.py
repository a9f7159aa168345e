"""Failures that cannot be the learning rate's: the same step of the same seed fails at every rate.

All rates of a seed see the same batches in the same order from the same weights. A rate that is
too high breaks training sooner the higher it is, so rates decades apart that break at the very
same step, and none of which passes it, break by what they share: the batch of that step, or the
code. At step 0 no update has been made, so there the rate has not acted at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from etascope.records import History, TrialId
from etascope.words import counted, number, rate

DECADES_APART = 1.0  # between the lowest and the highest rate that fail at the same step
# The same at an evaluation, where all that broke since the step before it is noticed.
DECADES_APART_EVALUATED = 3.0
# The same at the first update, which no rate survives that is high enough: a whole ladder may be.
DECADES_APART_FIRST = 9.0
RISE = 4.0  # times another loss: far above it


def rate_independent(histories: Iterable[History]) -> dict[TrialId, str]:
    """The trials that became non-finite for a reason that is not their rate.

    Of a seed these are the trials that failed at one step, if no trial of that seed passed the
    step, and if those of them whose loss had not risen before, or was like that of the lowest
    rate, span a decade of rates (three decades at an evaluation; nine at the first update, of
    losses that are not a number, since an infinite one tells of weights that were thrown far). At
    step 0 one trial is enough.

    Args:
        histories: one a trial, in any order, of any number of seeds.

    Returns:
        For each such trial the reason in words, which names the step and the seed. Failures of
        another cause (an exception, a batch that is not finite, a worker) are not among them:
        their cause says whose they are.

    Example:
        >>> from etascope.records import Burst, Failure, merge
        >>> failure = Failure(3, "non-finite", None, "the training loss became nan", "")
        >>> def trained(lr, failure):
        ...     trial, losses = TrialId(lr, 0), (1.0, 1.1, 0.9, math.nan if failure else 1.0)
        ...     stop = 3 if failure else 4
        ...     burst = Burst(trial, 0, stop, losses, (), (), (), failure, 0.1)
        ...     return merge(trial, 4, [burst])
        >>> both = [trained(1e-3, failure), trained(0.1, failure)]
        >>> [trial.lr for trial in rate_independent(both)]
        [0.001, 0.1]
        >>> rate_independent([*both, trained(1e-4, None)])
        {}
    """
    found: dict[TrialId, str] = {}
    seeds: dict[int, list[History]] = {}
    for history in histories:
        seeds.setdefault(history.trial.seed, []).append(history)
    for seed, group in seeds.items():
        for trials in _by_place(group):
            if not _passed(group, trials[0]) and _proven(trials):
                reason = _reason(seed, trials)
                found |= {history.trial: reason for history in trials}
    return found


def _by_place(group: Iterable[History]) -> Iterable[list[History]]:
    """The trials that became non-finite, those that did at the same place together."""
    places: dict[tuple[int, bool], list[History]] = {}
    for history in group:
        if history.failure is not None and history.failure.cause == "non-finite":
            places.setdefault((history.step, _at_evaluation(history)), []).append(history)
    return places.values()


def _at_evaluation(history: History) -> bool:
    """Whether the failure was noticed after an update; else it was the loss of the next one."""
    return len(history.loss) == history.step


def _passed(group: Iterable[History], failed: History) -> bool:
    """Whether a trial of the seed passed the place at which another one failed."""
    step = failed.step
    for history in group:
        trained = len(history.loss) - (history.failure is not None and not _at_evaluation(history))
        if trained > step:
            return True
        if _at_evaluation(failed) and history.failure is None and history.evaluation("valid", step):
            return True
    return False


def _proven(trials: Sequence[History]) -> bool:
    """Whether the trials that failed at one place did so at rates too far apart for luck.

    Only those count whose loss had not risen before, or was then like that of the lowest rate: a
    rate that breaks training shows in its loss, and shows more the higher it is.
    """
    first = min(trials, key=lambda history: history.trial.lr)
    if first.step == 0:
        return True
    if first.step == 1 and any(np.isinf(history.loss[1:]).any() for history in trials):
        return False
    alike = [
        history.trial.lr
        for history in trials
        if not _above(history, _ends(history)[0]) or not _above(history, _ends(first)[1])
    ]
    decades = math.log10(max(alike, default=1.0)) - math.log10(min(alike, default=1.0))
    least = DECADES_APART_EVALUATED if _at_evaluation(first) else DECADES_APART
    return decades > (DECADES_APART_FIRST if first.step == 1 else least) - 1e-9


def _ends(history: History) -> tuple[float, float]:
    """The first loss before the failure, and the median of the last three."""
    losses = history.loss[: history.step]
    losses = losses[np.isfinite(losses)]
    return (float(losses[0]), float(np.median(losses[-3:]))) if len(losses) else (0.0, 0.0)


def _above(history: History, level: float) -> bool:
    """Whether the last losses before the failure lie far above a level."""
    return _ends(history)[1] > level + (RISE - 1) * abs(level)


def _reason(seed: int, trials: Sequence[History]) -> str:
    first = trials[0]
    assert first.failure is not None
    message = first.failure.message.partition("; first in")[0]
    if first.step == 0:
        return (
            f"{message}, before any update, so the rate has had no effect: look at the loss, the "
            f"model and the first training batch of seed {seed}"
        )
    lrs = sorted(history.trial.lr for history in trials)
    if _at_evaluation(first):
        what = "look at the held-out data and at the model in evaluation"
    elif first.step == 1:
        what = (
            "look at the gradient of the untrained model, and at the first two training batches "
            f"of seed {seed}"
        )
    else:
        what = f"look at the training batch of step {number(first.step)} of seed {seed}"
    return (
        f"{message}, and so at {counted(len(lrs), 'rate')} from {rate(lrs[0])} to {rate(lrs[-1])} "
        f"at the same step, which no rate passed: the rate is not to blame; {what}"
    )
