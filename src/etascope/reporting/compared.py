"""Several optimizers on one problem: what each one's best rate is, and what missing it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from etascope.diagnosis.sensitivity import sensitivity
from etascope.errors import UsageError
from etascope.records import History
from etascope.reporting.axes import log_range, log_ticks
from etascope.reporting.figures import Figure, Trace, axis, label, layout, line, plain
from etascope.reporting.palette import MARKS
from etascope.reporting.words import number, rate
from etascope.study import Study

COLOURS = ("best", "diverged", "good", "stuck", "slow", "undecided")  # of the verdicts, in turn


class Compared(NamedTuple):
    """An optimizer.

    Attributes:
        name: of the optimizer, and of the study where two have the same.
        lr: its best rate, None where none learned.
        band: of rates that are as good, and its width in `decades`.
        loss: the held-out loss at the best rate.
        sensitivity: the loss that a random rate of the range costs.
        settled: whether the study says so for sure.
        lrs, losses: the response, ascending; chance where a rate failed.
    """

    name: str
    lr: float | None
    band: tuple[float, float] | None
    decades: float | None
    loss: float | None
    sensitivity: float | None
    settled: bool
    lrs: tuple[float, ...]
    losses: tuple[float, ...]


class Comparison(NamedTuple):
    """Optimizers on one problem over one horizon; sensitivities are over the rates of `reach`."""

    problem: str
    horizon: int
    chance: float
    reach: tuple[float, float]
    rows: tuple[Compared, ...]


def compare(studies: Sequence[Study]) -> Comparison:
    """Compare studies that differ in the optimizer.

    Sensitivity is taken over the rates of which all of them know how they end, from the lowest to
    the highest.

    Raises:
        UsageError: if there are fewer than two, or they are of different problems or horizons.
    """
    if len(studies) < 2:
        raise UsageError("a comparison needs at least two studies")
    first = studies[0]
    for other in studies[1:]:
        same = other.problem.name == first.problem.name and other.horizon == first.horizon
        if not same:
            raise UsageError(
                f"{other.path} is of {other.problem.name} over {other.horizon} steps and "
                f"{first.path} of {first.problem.name} over {first.horizon}; compare like with like"
            )
    known = [_losses(study) for study in studies]
    ends = [(min(losses), max(losses)) for losses in known if losses] or [(0.0, 0.0)]
    reach = (max(low for low, _ in ends), min(high for _, high in ends))
    names = [str(s.plan["optimizer"]).rpartition(":")[2] for s in studies]
    rows = []
    for study, losses, optimizer in zip(studies, known, names, strict=True):
        name = optimizer if names.count(optimizer) == 1 else f"{optimizer} ({study.path.name})"
        rows.append(_row(study, losses, name, reach))
    return Comparison(
        first.problem.name, first.horizon, first.problem.chance.loss, reach, tuple(rows)
    )


def _row(
    study: Study, losses: dict[float, float], name: str, reach: tuple[float, float]
) -> Compared:
    finding = study.finding
    lr = study.best if finding is None else finding.lr
    band = study.band if finding is None else finding.band
    chance = study.problem.chance.loss
    spread = sensitivity(losses, chance, *reach) if losses and reach[0] < reach[1] else None
    return Compared(
        name=name,
        lr=lr,
        band=band,
        decades=None if band is None else math.log10(band[1] / band[0]),
        loss=min(losses.values(), default=None) if lr is not None else None,
        sensitivity=spread,
        settled=study.complete if finding is None else finding.status == "resolved",
        lrs=tuple(losses),
        losses=tuple(losses.values()),
    )


def _losses(study: Study) -> dict[float, float]:
    """The held-out loss of each rate at the horizon: the mean over seeds, chance where it failed.

    A race knows of rates that did not get there how they would have stood.
    """
    chance = study.problem.chance.loss
    if study.finding is not None:
        found = {
            s.lr: s.expected if s.expected is not None else chance
            for s in study.finding.rates
            if s.expected is not None or s.failed
        }
        return {lr: min(loss, chance) for lr, loss in sorted(found.items())}
    groups: dict[float, list[float]] = {}
    for history in study.trials:
        if (loss := _final(history, study.horizon, chance)) is not None:
            groups.setdefault(history.trial.lr, []).append(loss)
    return {lr: sum(values) / len(values) for lr, values in sorted(groups.items())}


def _final(history: History, horizon: int, chance: float) -> float | None:
    if history.failure is not None:
        return chance if history.failure.cause == "non-finite" else None
    evaluation = history.evaluation("valid", horizon)
    return None if evaluation is None else min(evaluation.loss, chance)


def comparison_figure(found: Comparison) -> Figure:
    """The response of every optimizer, with its band."""
    values = [loss for row in found.rows for loss in row.losses]
    lrs = [lr for row in found.rows for lr in row.lrs]
    low, high = log_range([*values, found.chance], 0.08) or (0.0, 1.0)
    left, right = log_range(lrs) or (0.0, 1.0)
    ends = (10**left, 10**right)
    traces: list[Trace] = [
        line(ends, (found.chance, found.chance), "var(--muted)", width=1, dash="dot")
    ]
    marks = {mark.css: mark for mark in MARKS.values()}
    for place, row in enumerate(found.rows):
        css = COLOURS[place % len(COLOURS)]
        colour = f"var(--{css})"
        told = {
            "hoverinfo": None,
            "hovertemplate": f"{plain(row.name)}: %{{y:.3g}} at %{{x:.3g}}<extra></extra>",
        }
        drawn = line(row.lrs, row.losses, colour, width=2, **told)
        drawn |= {
            "mode": "lines+markers",
            "marker": {"symbol": marks[css].plotly, "size": 8, "color": colour},
        }
        traces.append(drawn)
        if row.lr is not None and row.loss is not None:
            traces.append(label(row.lr, row.loss, plain(row.name), colour, "bottom center"))
    x = axis("learning rate η", log=True, ticks=log_ticks(*ends), range=[left, right])
    ticks = log_ticks(10**low, 10**high, 6)
    y = axis("held-out loss", log=True, ticks=ticks, range=[low - 0.1 * (high - low), high])
    alt = "Held-out loss against the learning rate, one line an optimizer. " + " ".join(
        f"{row.name}: best at {rate(row.lr)} with {number(row.loss)}."
        for row in found.rows
        if row.lr is not None
    )
    return Figure("comparison", alt, traces, layout(x, y))


def headline(found: Comparison) -> str:
    """Which optimizer ends lowest, and which forgives a missed rate most."""
    learned = [row for row in found.rows if row.lr is not None and row.loss is not None]
    if not learned:
        return "No optimizer learned at any rate."
    best = min(learned, key=lambda row: row.loss or 0.0)
    text = f"Lowest loss: {best.name} at {rate(best.lr or 0.0)}."
    rated = [row for row in learned if row.sensitivity is not None]
    if len(rated) > 1:
        text += (
            f" Least sensitive to the rate: {min(rated, key=lambda r: r.sensitivity or 0.0).name}."
        )
    return text
