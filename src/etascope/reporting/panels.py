"""One panel each, drawn on the matplotlib axes they are given; the numbers come from views.

Only methods of the axes are used, never pyplot, so that no backend and no global state is touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from etascope.reporting.axes import log_range, log_ticks, plain_range
from etascope.reporting.ends import ends
from etascope.reporting.palette import MARKS, rate_colour, scale
from etascope.reporting.thinning import Drawn
from etascope.reporting.views import AdamSchedule, Curve, ReferenceCurve, Response
from etascope.reporting.words import number, rate, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, FAINT, GRID = "#16191d", "#6a717b", "#a9afb8", "#ececea"
BAND, EDGE = "#009e73", "#d55e00"
LABELLED = 8  # rates that are labelled at their lines; more of them get a colour bar
FEW = 24  # trials that are drawn with every point and a trend


def response_panel(ax: Axes, view: Response, field: str) -> None:
    """The last held-out loss or metric of every trial against its rate."""
    loss = field == "loss"
    name = "loss" if loss else view.metric or "metric"
    values = [p.loss if loss else p.metric for p in view.points]
    level = view.chance if loss else view.majority
    lrs = log_range([p.lr for p in view.points]) or (-1.0, 0.0)
    _log_axis(ax, "x", *lrs)
    _frame(ax, "learning rate η", f"held-out {name}")
    if all(v is None for v in values):
        ax.set_yticks([])
        ax.text(0.5, 0.5, f"no held-out {name}", transform=ax.transAxes, ha="center", color=MUTED)
        return
    logs = log_range([*values, level], 0.08) if loss else None
    low, high = logs or plain_range([*values, level])
    high += 0.08 * (high - low)
    _reach(ax, (low, high), log=bool(logs))
    _band(ax, view)
    if view.common is not None:
        ax.plot(
            view.common.lrs,
            _nan(view.common.loss if loss else view.common.metric),
            color=FAINT,
            lw=1.2,
            label=f"all rates at step {number(view.common.step)}",
        )
    if level is not None:
        text = f"{view.chance_name} {number(level)}" if loss else f"commonest class {share(level)}"
        _level(ax, level, text, above=loss)
    worse = high if loss or not view.higher_is_better else low
    worse += 0.1 * ((low + high) / 2 - worse)  # inside the panel, so that the mark is whole
    worse = 10**worse if logs else worse
    for verdict, mark in MARKS.items():
        chosen = [
            (p, v)
            for p, v in zip(view.points, values, strict=True)
            if p.verdict == verdict and (v is not None or p.broken)
        ]
        for point, value in chosen:
            ax.plot(
                [point.lr],
                [worse if value is None else value],
                mark.matplotlib,
                zorder=3,
                ms=11 if verdict == "best" else 7.5 if len(view.points) <= 60 else 4.5,
                mec=mark.light,
                mew=1.6,
                clip_on=False,
                mfc="none" if point.provisional else mark.light,
                label=verdict if point is chosen[0][0] else None,
            )


def pair_panel(
    ax: Axes, curve: Curve, behind: ReferenceCurve | None, against: Response, horizon: int
) -> None:
    """The metric of the training batches over the steps, with the held-out values."""
    metric, mark = against.metric or "metric", MARKS[curve.verdict]
    shown = [*curve.probe.values, *curve.valid_metric, against.majority]
    _reach(ax, plain_range(shown), log=False)
    ax.set_xlim(-0.01 * horizon, 1.01 * horizon)
    _frame(ax, "step", metric)
    title = f"η = {rate(curve.lr)}: {curve.verdict}"
    if curve.test_metric is not None:
        title += f", test {metric} {share(curve.test_metric)}"
    ax.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=24)
    if against.majority is not None:
        _level(ax, against.majority, "", above=False)
    if behind is not None:
        series = behind.accuracy
        ax.plot(
            series.trend_steps,
            _nan(series.trend),
            "--",
            color="#8b9199",
            lw=1.4,
            label=behind.made_by,
        )
    series = curve.probe
    whole = len(series.steps) <= len(series.trend_steps)
    if not whole:
        ax.plot(series.steps, _nan(series.values), color=mark.light, lw=0.8, alpha=0.35)
    ax.plot(
        series.trend_steps, _nan(series.trend), color=mark.light, lw=1.7, label="training batch"
    )
    ax.plot(
        curve.valid_steps,
        _nan(curve.valid_metric),
        "o",
        mfc="none",
        mec=INK,
        ms=5.5,
        clip_on=False,
        label="held out",
    )
    key(ax, 3)


def curves_panel(ax: Axes, curves: Sequence[Curve], chance: float | None) -> None:
    """The training loss of every trial over its steps, log-log where the losses are positive."""
    curves = [c for c in curves if any(v is not None for v in c.loss.values)]
    _frame(ax, "update (step + 1)", "training loss")
    if not curves:
        ax.text(0.5, 0.5, "not trained yet", transform=ax.transAxes, ha="center", color=MUTED)
        return
    lrs = sorted({c.lr for c in curves})
    values = [*(v for c in curves for v in c.loss.values), chance]
    logs = log_range(values, 0.04)
    low, high = logs or plain_range(values)
    last = max(2, *(c.loss.steps[-1] + 1 for c in curves))
    labelled = len(lrs) <= LABELLED
    edge = last**1.05 if labelled else float(last)  # room for the leaders of the names
    _log_axis(ax, "x", 0.0, math.log10(edge))
    _reach(ax, (low, high), log=bool(logs))
    if chance is not None:
        ax.axhline(chance, color=MUTED, lw=0.9, ls=":")
    for curve in sorted(curves, key=lambda c: -c.lr):
        colour, series = rate_colour(curve.lr, lrs), curve.loss
        few = len(curves) <= FEW
        ax.plot(
            [s + 1 for s in series.steps],
            _nan(series.values),
            color=colour,
            lw=0.7,
            alpha=0.3 if few else 0.6,
        )
        if few:
            ax.plot([s + 1 for s in series.trend_steps], _nan(series.trend), color=colour, lw=1.6)
    if labelled:
        _end_labels(ax, curves, edge, (low, high), log=bool(logs))
    else:
        _colour_bar(ax, lrs)


def schedule_panel(ax: Axes, view: AdamSchedule) -> None:
    """Adam's factor lr_t over the steps, with the rate that it tends to."""
    values = [v for r in view.rates for v in (*r.effective, r.lr)]
    low, high = log_range(values) or (-1.0, 0.0)
    _log_axis(ax, "x", 0.0, math.log10(max(2, *(r.steps[-1] for r in view.rates))))
    _reach(ax, (low, high + 0.1), log=True)
    _frame(ax, "step t", "$lr_t$")
    for shown in view.rates:
        colour = MARKS["diverged" if shown.role == "fails" else "best"].light
        ax.axhline(shown.lr, color=colour, lw=0.9, ls=":")
        ax.plot(shown.steps, shown.effective, color=colour, lw=2)
        ax.annotate(
            f"η = {rate(shown.lr)}, {shown.role}",
            (1, shown.lr),
            xytext=(2, 4),
            textcoords="offset points",
            color=colour,
            fontsize=9,
        )


def key(ax: Axes, columns: int) -> None:
    """The legend above the panel, without a frame."""
    if not ax.get_legend_handles_labels()[0]:
        return
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        handlelength=1.6,
        columnspacing=1.2,
        borderaxespad=0.1,
    )


def _band(ax: Axes, view: Response) -> None:
    if view.edge is not None:
        rates = [point.lr for point in view.points]
        ax.axvspan(*np.clip(view.edge, min(rates), max(rates)), color=EDGE, alpha=0.1, lw=0)
    if view.band is not None:
        low, high = view.band
        wide = 1.07 if low == high else 1.0
        ax.axvspan(low / wide, high * wide, color=BAND, alpha=0.13, lw=0)


def _level(ax: Axes, level: float, text: str, *, above: bool) -> None:
    ax.axhline(level, color=MUTED, lw=0.9, ls=":")
    ax.annotate(
        text,
        (0, level),
        xycoords=("axes fraction", "data"),
        color=MUTED,
        fontsize=8.5,
        xytext=(2, 7 if above else -15),
        textcoords="offset points",
    )


def _end_labels(
    ax: Axes, curves: Sequence[Curve], edge: float, reach: tuple[float, float], *, log: bool
) -> None:
    """The rates in a column at the right edge, a thin line leading from each curve to its name."""
    lrs = [c.lr for c in curves]
    for end in ends(curves, reach, 0.05, log=log):
        colour = rate_colour(end.lr, lrs)
        ax.plot((end.update, edge), (end.value, end.height), ":", color=colour, lw=0.9)
        ax.annotate(
            rate(end.lr),
            (edge, end.height),
            xytext=(4, 0),
            va="center",
            textcoords="offset points",
            color=colour,
            fontsize=9,
        )


def _colour_bar(ax: Axes, lrs: Sequence[float]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    colours = LinearSegmentedColormap.from_list("rates", scale())
    mapped = ScalarMappable(LogNorm(min(lrs), max(lrs)), colours)
    bar = ax.figure.colorbar(mapped, ax=ax, fraction=0.03, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.5, colors=MUTED)
    bar.set_label("η", color=MUTED)


def _frame(ax: Axes, x: str, y: str) -> None:
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("#b9bdc3")
    ax.set_xlabel(x, color="#454b54", fontsize=9.5)
    ax.set_ylabel(y, color="#454b54", fontsize=9.5)
    ax.tick_params(which="both", length=0, labelsize=8.5, labelcolor="#454b54")
    ax.grid(axis="y", color=GRID, lw=0.8)
    ax.set_axisbelow(True)


def _log_axis(ax: Axes, which: str, low: float, high: float) -> None:
    """A log axis from 10^low to 10^high with few, plainly written ticks."""
    ticks = log_ticks(10**low, 10**high, 7)
    limits: Any = (10**low, 10**high)
    if which == "x":
        ax.set_xscale("log")
        ax.set_xticks(ticks.values, ticks.texts)
        ax.set_xticks([], minor=True)
        ax.set_xlim(limits)
    else:
        ax.set_yscale("log")
        ax.set_yticks(ticks.values, ticks.texts)
        ax.set_yticks([], minor=True)
        ax.set_ylim(limits)


def _reach(ax: Axes, reach: tuple[float, float], *, log: bool) -> None:
    if log:
        _log_axis(ax, "y", *reach)
    else:
        ax.set_ylim(reach)


def _nan(values: Drawn) -> list[float]:
    return [math.nan if v is None else v for v in values]
