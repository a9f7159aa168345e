"""The one rate of a study that is highlighted, in every table and picture of it.

Of a sweep that is the best of the rates that were trained. A race suggests a rate, which may lie
between the trained ones and need not be the one with the lowest loss: there the star is its.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from etascope.diagnosis.statistics import average
from etascope.study import Study

SUGGESTED = "suggested"


class Star(NamedTuple):
    """The suggestion of a race where it is drawn: the loss and the metric expected there."""

    lr: float
    loss: float | None
    metric: float | None


def highlighted(study: Study) -> float | None:
    """The rate that is highlighted; None where there is none to use."""
    return study.best if study.finding is None else study.finding.lr


def marked(study: Study, lr: float, verdict: str) -> str:
    """What a rate is marked as: its verdict, but that a race has no other best than its suggestion.

    The verdict `best` compares the rates of the first seed only; such a rate is good besides.
    """
    if study.finding is None or verdict not in ("best", "good"):
        return verdict
    return SUGGESTED if lr == study.finding.lr else "good"


def star(study: Study) -> Star | None:
    """The suggestion of a race, also where that rate was not trained itself."""
    finding = study.finding
    if finding is None or finding.lr is None:
        return None
    losses: dict[float, list[float]] = {}
    metrics: dict[float, list[float]] = {}
    for history in study.trials:
        evaluation = history.evaluation("valid", study.horizon)
        if evaluation is None:
            continue
        losses.setdefault(history.trial.lr, []).append(evaluation.loss)
        if evaluation.metric is not None:
            metrics.setdefault(history.trial.lr, []).append(evaluation.metric)
    return Star(finding.lr, _between(losses, finding.lr), _between(metrics, finding.lr))


def _between(found: dict[float, list[float]], lr: float) -> float | None:
    """The mean of a rate, or on the straight line in log rate between those beside it."""
    means = {rate: average(values) for rate, values in sorted(found.items())}
    means = {rate: mean for rate, mean in means.items() if math.isfinite(mean)}
    if not means:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        value = float(np.interp(math.log(lr), np.log(list(means)), list(means.values())))
    return value if math.isfinite(value) else means[min(means, key=lambda rate: abs(rate - lr))]
