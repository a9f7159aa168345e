"""The table of a study: one row a rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from etascope.diagnosis.statistics import average
from etascope.records import History
from etascope.reporting.highlight import SUGGESTED, marked
from etascope.reporting.words import listed, rate
from etascope.study import Study


class Spread(NamedTuple):
    """A mean over seeds with its range; `seeds` seeds had a value, which may be less than all."""

    mean: float
    low: float
    high: float
    seeds: int


class Row(NamedTuple):
    """One rate in the table."""

    lr: float
    seeds: int
    steps: tuple[int, int]
    valid_loss: Spread | None
    metric: Spread | None
    test_metric: Spread | None
    peak_loss: Spread | None
    verdict: str
    provisional: bool
    as_of: int
    reason: str


def table(study: Study) -> tuple[Row, ...]:
    """One row a rate, ascending: numbers over its seeds, the verdict and its reason.

    A suggestion that was not trained itself has a row too, without numbers.
    """
    rows = []
    groups: dict[float, list[History]] = {}
    for history in study.trials:
        groups.setdefault(history.trial.lr, []).append(history)
    suggestion = None if study.finding is None else study.finding.lr
    for lr, verdict in study.verdicts.items():
        group = groups[lr]
        valid = [e for h in group if (e := h.evaluation("valid"))]
        test = [e for h in group if (e := h.evaluation("test"))]
        rows.append(
            Row(
                lr=lr,
                seeds=len(group),
                steps=(min(h.step for h in group), max(h.step for h in group)),
                valid_loss=_spread([e.loss for e in valid]),
                metric=_spread([e.metric for e in valid]),
                test_metric=_spread([e.metric for e in test]),
                peak_loss=_spread([h.peak[1] if h.peak else None for h in group]),
                # Whatever became of its trials so far, the table names the rate to use.
                verdict=SUGGESTED if lr == suggestion else marked(study, lr, verdict.name),
                provisional=verdict.provisional,
                as_of=verdict.step,
                reason=verdict.reason,
            )
        )
    if suggestion is not None and suggestion not in groups:
        rows = sorted([*rows, _untrained(suggestion, study.lrs)], key=lambda row: row.lr)
    return tuple(rows)


def _untrained(lr: float, trained: Sequence[float]) -> Row:
    """The row of a suggestion that lies between the rates that were trained."""
    beside = [max([r for r in trained if r < lr], default=None)]
    beside.append(min([r for r in trained if r > lr], default=None))
    names = listed([rate(r) for r in beside if r is not None])
    reason = f"not trained itself: the losses of the rates around it are lowest here, by {names}"
    return Row(lr, 0, (0, 0), None, None, None, None, SUGGESTED, False, 0, reason)


def _spread(values: Sequence[float | None]) -> Spread | None:
    there = [v for v in values if v is not None]
    if not there:
        return None
    return Spread(average(there), min(there), max(there), len(there))
