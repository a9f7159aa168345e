"""Several optimizers on one problem: what each one's best rate is, and what missing it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from etascope.diagnosis.sensitivity import sensitivity
from etascope.diagnosis.statistics import average
from etascope.errors import UsageError
from etascope.records import History
from etascope.reporting.axes import Reach, log_ticks, loss_reach, rate_reach, rate_title
from etascope.reporting.figures import (
    Figure,
    Trace,
    axis,
    beyond,
    label,
    layout,
    line,
    plain,
    value_axis,
)
from etascope.reporting.palette import MARKS
from etascope.reporting.words import number, rate
from etascope.search.edge import decades
from etascope.study import Study

COLOURS = ("best", "diverged", "good", "stuck", "slow", "undecided")  # of the verdicts, in turn
SYMBOLS = {mark.css: mark.plotly for mark in MARKS.values()}
ROW = 0.09  # of the height of the curves
ROOM = 0.02  # of the width, between a band and its name


class Compared(NamedTuple):
    """An optimizer.

    Attributes:
        name: of the optimizer, and of the study where two have the same.
        lr: its best rate, None where none learned.
        band: of rates that are as good, and its width in `decades`.
        loss: the held-out loss at the best rate.
        sensitivity: the loss that a random rate of the range costs; None where none learned.
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
    rated = lr is not None and reach[0] < reach[1]
    spread = sensitivity(losses, chance, *reach) if losses and rated else None
    return Compared(
        name=name,
        lr=lr,
        band=band,
        decades=None if band is None else decades(*band),
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
    if study.finding is not None and study.finding.objective == "loss":
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
    return {lr: average(values) for lr, values in sorted(groups.items())}


def _final(history: History, horizon: int, chance: float) -> float | None:
    if history.failure is not None:
        return chance if history.failure.cause == "non-finite" else None
    evaluation = history.evaluation("valid", horizon)
    return None if evaluation is None else min(evaluation.loss, chance)


def comparison_figure(found: Comparison) -> Figure:
    """The response of every optimizer; below the curves a row for each, with its name and band."""
    values = [found.chance, *(loss for row in found.rows for loss in row.losses)]
    reach = loss_reach(values, found.chance, 0.08)
    rates = rate_reach([lr for row in found.rows for lr in row.lrs])
    left, right, ends = rates.low, rates.high, rates.ends
    level = reach.place(found.chance)
    traces: list[Trace] = [line(ends, (level, level), "var(--muted)", width=1, dash="dot")]
    for place, row in enumerate(found.rows):
        css = COLOURS[place % len(COLOURS)]
        traces += [_curve(row, css, rates, reach), *_strip(row, css, place, rates)]
    count = len(found.rows)
    floor = count * ROW / (1 + count * ROW)  # of the height, which the rows take
    x = axis(rate_title(rates), log=True, ticks=log_ticks(*ends), range=[left, right], anchor="y2")
    y = value_axis("held-out loss", reach, 6) | {"domain": [floor, 1]}
    traces += beyond(reach, ends[1])
    strips = {"domain": [0, floor], "range": [count - 0.5, -0.5], "visible": False}
    alt = "Held-out loss against the learning rate, one line an optimizer. " + " ".join(
        f"{row.name}: best at {rate(row.lr)} with {number(row.loss)}."
        for row in found.rows
        if row.lr is not None
    )
    return Figure("comparison", alt, traces, {**layout(x, y), "yaxis2": strips})


def _curve(row: Compared, css: str, rates: Reach, reach: Reach) -> Trace:
    return line(rates.places(row.lrs), reach.places(row.losses), f"var(--{css})") | {
        "mode": "lines+markers",
        "marker": {"symbol": SYMBOLS[css], "size": 8, "color": f"var(--{css})"},
        "hoverinfo": None,
        "hovertemplate": f"{plain(row.name)}: %{{y:.3g}} at %{{x:.3g}}<extra></extra>",
    }


def _strip(row: Compared, css: str, place: int, rates: Reach) -> list[Trace]:
    """A row of its own: the band, the best rate on it, and the name on the side with more room."""
    colour, middle = f"var(--{css})", rates.at(0.5)
    if row.lr is None:
        words = f"{plain(row.name)}: none learned"
        return [label(middle, place, words, colour, "middle center") | {"yaxis": "y2"}]
    low, high = rates.span(row.band or (row.lr, row.lr))
    best = line([rates.place(row.lr)], [place], colour) | {
        "mode": "markers",
        "marker": {"symbol": SYMBOLS[css], "size": 10, "color": colour},
    }
    room = 10 ** (ROOM * (rates.high - rates.low))
    if math.log10(low) + math.log10(high) < 2 * math.log10(middle):
        name = label(high * room, place, plain(row.name), colour, "middle right")
    else:
        name = label(low / room, place, plain(row.name), colour, "middle left")
    band = line((low, high), (place, place), colour, width=6, opacity=0.4)
    return [trace | {"yaxis": "y2"} for trace in (band, best, name)]


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
