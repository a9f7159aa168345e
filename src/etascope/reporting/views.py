"""What is shown of a study, as plain numbers and strings: the one source of tables and figures.

Each view is a pure function of a `Study`. Nothing is drawn here, and nothing is worked out where
these are drawn. Steps count finished updates, as in `etascope.records`; a value that is missing
or not finite is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from etascope.diagnosis.statistics import average
from etascope.optim.reference import effective_lr
from etascope.records import Evaluation, History
from etascope.reporting.answer import FAILED, Answer, answer
from etascope.reporting.elsewhere import Reference, ReferenceCurve, behind, reference_curves
from etascope.reporting.highlight import SUGGESTED, Star, highlighted, marked, star
from etascope.reporting.rates import Row, Spread, table
from etascope.reporting.reproduction import Reproduction, reproduce
from etascope.reporting.thinning import LIMIT, Drawn, Series, drawn, finite, rounded, thin
from etascope.study import Study

__all__ = [
    "AdamSchedule",
    "Answer",
    "Common",
    "Curve",
    "HighLow",
    "Point",
    "RateOverSteps",
    "Reference",
    "ReferenceCurve",
    "Reproduction",
    "Response",
    "Row",
    "Spread",
    "adam_schedule",
    "answer",
    "behind",
    "curves",
    "high_and_low",
    "reference_curves",
    "reproduce",
    "response",
    "table",
]

BETAS = (0.9, 0.999)  # of the named Adam optimizers
POINTS = 60_000  # of all loss curves of one study together
FEWEST = 200  # points that a curve keeps however many there are


class Point(NamedTuple):
    """One trial in the plots against the rate; `step` is that of its last held-out evaluation.

    `broken` trials failed, or ended with a loss that is not finite: they may have no value, and
    are shown all the same. A trial that was not evaluated yet has none either, and is not.
    """

    lr: float
    seed: int
    step: int
    loss: float | None
    metric: float | None
    verdict: str
    provisional: bool
    broken: bool


class Common(NamedTuple):
    """The mean over seeds of every rate at the last step that all of them were evaluated at."""

    step: int
    lrs: tuple[float, ...]
    loss: Drawn
    metric: Drawn


class Response(NamedTuple):
    """What each rate came to. `best` and `band` are those of the finding where there is one.

    `star` is the suggestion of a race; the trials at that rate are marked as good as others.
    `edge` is its interval around the rate where training breaks.
    `chance` is the loss of knowing nothing, or where that is not known of the untrained network,
    as `chance_name` says; `majority` is the metric of always naming the commonest class.
    """

    points: tuple[Point, ...]
    common: Common | None
    chance: float | None
    chance_name: str
    majority: float | None
    metric: str | None
    higher_is_better: bool
    best: float | None
    star: Star | None
    band: tuple[float, float] | None
    edge: tuple[float, float] | None
    horizon: int


class Curve(NamedTuple):
    """One trial over its steps; the probe is the metric of the training batch, without dropout."""

    lr: float
    seed: int
    verdict: str
    step: int
    failed_at: int | None
    loss: Series
    probe: Series
    valid_steps: tuple[int, ...]
    valid_loss: Drawn
    valid_metric: Drawn
    test_step: int | None
    test_loss: float | None
    test_metric: float | None


class HighLow(NamedTuple):
    """The rate that fails and the rate that works, trained to the horizon; None where absent."""

    high: Curve | None
    low: Curve | None


class RateOverSteps(NamedTuple):
    """The factor that Adam puts before its update, at a thinned choice of steps from 1."""

    lr: float
    role: str
    steps: tuple[int, ...]
    effective: tuple[float, ...]


class AdamSchedule(NamedTuple):
    """Adam's own schedule `lr_t` of the high and the best rate."""

    nesterov: bool
    betas: tuple[float, float]
    rates: tuple[RateOverSteps, ...]


def response(study: Study) -> Response:
    """The last held-out loss and metric of every trial, with what they are measured against."""
    points = []
    for history in study.trials:
        evaluation, verdict = history.evaluation("valid"), study.judgement.trials[history.trial]
        loss = finite(evaluation.loss if evaluation else None)
        of = marked(study, history.trial.lr, verdict.name)
        points.append(
            Point(
                lr=history.trial.lr,
                seed=history.trial.seed,
                step=evaluation.step if evaluation else history.step,
                loss=loss,
                metric=finite(evaluation.metric if evaluation else None),
                verdict="good" if of == SUGGESTED else of,
                provisional=verdict.provisional,
                broken=history.failure is not None or bool(evaluation and loss is None),
            )
        )
    chance, finding = study.problem.chance, study.finding
    majority = chance.majority
    edge = finding.edge if finding is not None else None
    counted = any(e.correct is not None for h in study.trials for e in h.evaluations)
    return Response(
        points=tuple(points),
        common=_common(study),
        chance=finite(chance.loss),
        chance_name="untrained" if chance.source == "initial loss" else "knowing nothing",
        majority=max(majority)[1] if majority and counted else None,
        metric=study.problem.metric,
        higher_is_better=study.problem.higher_is_better,
        best=highlighted(study),
        star=star(study),
        band=study.band if finding is None else finding.band,
        edge=None if edge is None or edge.lr is None else (edge.low, edge.high),
        horizon=study.horizon,
    )


def curves(study: Study) -> tuple[Curve, ...]:
    """Every trial that has begun, over its steps, with a bounded number of points in all."""
    begun = [h for h in study.trials if h.step or len(h.loss)]
    limit = max(FEWEST, min(LIMIT, POINTS // max(len(begun), 1)))
    names = {h.trial: study.judgement.trials[h.trial].name for h in begun}
    return tuple(_curve(h, marked(study, h.trial.lr, names[h.trial]), limit) for h in begun)


def high_and_low(study: Study) -> HighLow:
    """The failed trial of the highest rate that was trained to the horizon, and one of the best.

    Where no failed trial lasted that long, it is one that was on its way there.
    """
    whole = [h for h in study.trials if h.target >= study.horizon and len(h.loss)]
    failed = [h for h in whole if study.judgement.trials[h.trial].name in FAILED]
    best = [h for h in whole if h.trial.lr == highlighted(study)]
    best = best or [h for h in whole if h.trial.lr == study.best]
    lasted = [h for h in failed if h.failure is None and h.step >= study.horizon]
    high = max(lasted or failed, key=lambda h: (h.trial.lr, -h.trial.seed), default=None)
    low = min(best, key=lambda h: h.trial.seed, default=None)

    def curve(history: History | None) -> Curve | None:
        if history is None:
            return None
        verdict = study.judgement.trials[history.trial].name
        return _curve(history, marked(study, history.trial.lr, verdict), LIMIT)

    return HighLow(curve(high), curve(low))


def adam_schedule(study: Study) -> AdamSchedule | None:
    """`lr_t = lr·sqrt(1 - β2^t)/(1 - β1^t)` of the high and the best rate.

    None where the optimizer is not the Adam of this package, or neither rate is there.
    """
    optimizer = study.plan.get("optimizer")
    if optimizer not in ("adam", "adam-nesterov"):
        return None
    pair, role = high_and_low(study), "best" if study.finding is None else SUGGESTED
    rates = []
    for told, lr in (("fails", pair.high and pair.high.lr), (role, highlighted(study))):
        if lr is not None:
            steps = np.unique(np.geomspace(1, max(study.horizon, 1), 300).round().astype(int))
            with np.errstate(over="ignore"):  # of rates near the largest double
                values = np.minimum(effective_lr(lr, steps, BETAS), np.finfo(np.float64).max)
            effective = tuple(rounded(float(v), 6) for v in values)
            rates.append(RateOverSteps(lr, told, tuple(steps.tolist()), effective))
    return AdamSchedule(optimizer == "adam-nesterov", BETAS, tuple(rates)) if rates else None


def _common(study: Study) -> Common | None:
    """None with fewer than two rates that have not failed outright, or without a common step."""
    groups: dict[float, list[History]] = {}
    for history in study.trials:
        if history.failure is None:
            groups.setdefault(history.trial.lr, []).append(history)
    reached = [
        {e.step for e in h.evaluations if e.split == "valid"} for g in groups.values() for h in g
    ]
    steps = set.intersection(*reached) if reached else set()
    if len(groups) < 2 or not steps:
        return None
    step = max(steps)
    means: list[tuple[float, float]] = []
    for group in groups.values():
        there = [e for h in group if (e := h.evaluation("valid", step))]
        means.append((_mean([e.loss for e in there]), _mean([e.metric for e in there])))
    return Common(step, tuple(groups), drawn([m[0] for m in means]), drawn([m[1] for m in means]))


def _mean(values: Sequence[float | None]) -> float:
    there = [v for v in values if v is not None]
    return average(there) if there else math.nan


def _curve(history: History, verdict: str, limit: int) -> Curve:
    valid = sorted({e.step: e for e in history.evaluations if e.split == "valid"}.items())
    test: Evaluation | None = history.evaluation("test")
    return Curve(
        lr=history.trial.lr,
        seed=history.trial.seed,
        verdict=verdict,
        step=history.step,
        failed_at=history.failure.step if history.failure else None,
        loss=thin(np.arange(len(history.loss)), history.loss, limit, growing=True),
        probe=thin(history.probe_steps, history.probe_metric, limit),
        valid_steps=tuple(step for step, _ in valid),
        valid_loss=drawn([e.loss for _, e in valid]),
        valid_metric=drawn([math.nan if e.metric is None else e.metric for _, e in valid]),
        test_step=test.step if test else None,
        test_loss=finite(test.loss if test else None),
        test_metric=finite(test.metric if test else None),
    )
