"""One panel each, drawn on the matplotlib axes they are given; the numbers come from views.

Only methods of the axes are used, never pyplot, so that no backend and no global state is touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etascope.reporting.axes import Reach, loss_reach, plain_reach, rate_reach, rate_title
from etascope.reporting.ends import ends
from etascope.reporting.frame import FAINT, INK, MUTED, frame, log_axis, middle, show_reach, words
from etascope.reporting.palette import MARKS, rate_colour, scale
from etascope.reporting.views import AdamSchedule, Curve, ReferenceCurve, Response
from etascope.reporting.words import number, rate, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAND, EDGE = "#009e73", "#d55e00"
LABELLED = 8  # rates that are labelled at their lines; more of them get a colour bar
FEW = 24  # trials that are drawn with every point and a trend


def response_panel(ax: Axes, view: Response, field: str) -> None:
    """The last held-out loss or metric of every trial against its rate."""
    loss = field == "loss"
    name = "loss" if loss else view.metric or "metric"
    values = [p.loss if loss else p.metric for p in view.points]
    level = view.chance if loss else view.majority
    rates = rate_reach([p.lr for p in view.points])
    log_axis(ax, "x", rates)
    frame(ax, rate_title(rates), f"held-out {name}")
    if all(v is None for v in values):
        ax.set_yticks([])
        middle(ax, f"no held-out {name}")
        return
    reach = loss_reach(values, level, 0.08) if loss else plain_reach([*values, level])
    reach = reach._replace(high=reach.high + 0.08 * (reach.high - reach.low))
    show_reach(ax, reach)
    _band(ax, view, rates)
    if view.common is not None:
        ax.plot(
            _nan(rates.places(view.common.lrs)),
            _nan(reach.places(view.common.loss if loss else view.common.metric)),
            color=FAINT,
            lw=1.2,
            label=f"all rates at step {number(view.common.step)}",
        )
    if level is not None:
        text = f"{view.chance_name} {number(level)}" if loss else f"commonest class {share(level)}"
        _level(ax, reach.place(level), text, above=loss)
    # Inside the panel, so that the mark is whole.
    worse = reach.at(0.95 if loss or not view.higher_is_better else 0.05)
    for verdict, mark in MARKS.items():
        chosen = [
            (p, v)
            for p, v in zip(view.points, values, strict=True)
            if p.verdict == verdict and (v is not None or p.broken)
        ]
        for point, value in chosen:
            ax.plot(
                [rates.place(point.lr)],
                [worse if value is None else reach.place(value)],
                mark.matplotlib,
                zorder=3,
                ms=11 if verdict == "best" else 7.5 if len(view.points) <= 60 else 4.5,
                mec=mark.light,
                mew=1.6,
                clip_on=False,
                mfc="none" if point.provisional else mark.light,
                label=verdict if point is chosen[0][0] else None,
            )
    _star(ax, view, rates, reach, loss=loss)


def pair_panel(
    ax: Axes, curve: Curve, behind: ReferenceCurve | None, against: Response, horizon: int
) -> None:
    """The metric of the training batches over the steps, with the held-out values."""
    metric, mark = against.metric or "metric", MARKS[curve.verdict]
    shown = [*curve.probe.values, *curve.valid_metric, against.majority]
    reach = plain_reach(shown)
    show_reach(ax, reach)
    ax.set_xlim(-0.01 * horizon, 1.01 * horizon)
    frame(ax, "step", metric)
    title = f"η = {rate(curve.lr)}: {curve.verdict}"
    if curve.test_metric is not None:
        title += f", test {metric} {share(curve.test_metric)}"
    words(ax.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=24))
    if against.majority is not None:
        _level(ax, against.majority, "", above=False)
    if behind is not None:
        series = behind.accuracy
        ax.plot(
            series.trend_steps,
            _nan(reach.places(series.trend)),
            "--",
            color="#8b9199",
            lw=1.4,
            label=behind.made_by,
        )
    series = curve.probe
    whole = len(series.steps) <= len(series.trend_steps)
    if not whole:
        faint = _nan(reach.places(series.values))
        ax.plot(series.steps, faint, color=mark.light, lw=0.8, alpha=0.35)
    trend = _nan(reach.places(series.trend))
    ax.plot(series.trend_steps, trend, color=mark.light, lw=1.7, label="training batch")
    ax.plot(
        curve.valid_steps,
        _nan(reach.places(curve.valid_metric)),
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
    frame(ax, "update (step + 1)", "training loss")
    if not curves:
        middle(ax, "not trained yet")
        return
    lrs = sorted({c.lr for c in curves})
    rates = rate_reach(lrs, 0)
    reach = loss_reach([v for c in curves for v in c.loss.values], chance, 0.04)
    last = max(2, *(c.loss.steps[-1] + 1 for c in curves))
    labelled = len(lrs) <= LABELLED
    edge = last**1.05 if labelled else float(last)  # room for the leaders of the names
    log_axis(ax, "x", Reach(0.0, math.log10(edge), log=True))
    show_reach(ax, reach)
    if chance is not None:
        ax.axhline(reach.place(chance), color=MUTED, lw=0.9, ls=":")
    for curve in sorted(curves, key=lambda c: -c.lr):
        colour, series = rate_colour(rates.place(curve.lr), rates.ends), curve.loss
        few = len(curves) <= FEW
        ax.plot(
            [s + 1 for s in series.steps],
            _nan(reach.places(series.values)),
            color=colour,
            lw=0.7,
            alpha=0.3 if few else 0.6,
        )
        if few:
            trend = _nan(reach.places(series.trend))
            ax.plot([s + 1 for s in series.trend_steps], trend, color=colour, lw=1.6)
    if labelled:
        _end_labels(ax, curves, edge, reach)
    else:
        _colour_bar(ax, lrs)


def schedule_panel(ax: Axes, view: AdamSchedule) -> None:
    """Adam's factor lr_t over the steps, with the rate that it tends to."""
    last = math.log10(max(2, *(r.steps[-1] for r in view.rates)))
    reach = rate_reach([v for r in view.rates for v in (*r.effective, r.lr)])
    log_axis(ax, "x", Reach(0.0, last, log=True))
    show_reach(ax, reach._replace(high=reach.high + 0.1))
    frame(ax, "step t", "lrₜ")
    for shown in view.rates:
        colour = MARKS["diverged" if shown.role == "fails" else "best"].light
        ax.axhline(reach.place(shown.lr), color=colour, lw=0.9, ls=":")
        ax.plot(shown.steps, _nan(reach.places(shown.effective)), color=colour, lw=2)
        ax.annotate(
            f"η = {rate(shown.lr)}, {shown.role}",
            (1, reach.place(shown.lr)),
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


def _band(ax: Axes, view: Response, rates: Reach) -> None:
    if view.edge is not None:
        tried = [point.lr for point in view.points]
        edge = Reach(min(tried), max(tried), log=False).span(view.edge)
        ax.axvspan(*rates.span(edge), color=EDGE, alpha=0.1, lw=0)
    if view.band is not None:
        low, high = rates.span(view.band)
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


def _end_labels(ax: Axes, curves: Sequence[Curve], edge: float, reach: Reach) -> None:
    """The rates in a column at the right edge, a thin line leading from each curve to its name."""
    rates = rate_reach([c.lr for c in curves], 0)
    for end in ends(curves, reach, 0.05):
        colour = rate_colour(rates.place(end.lr), rates.ends)
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
    mapped = ScalarMappable(LogNorm(*rate_reach(lrs, 0).ends), colours)
    bar = ax.figure.colorbar(mapped, ax=ax, fraction=0.03, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.5, colors=MUTED)
    bar.set_label("η", color=MUTED)


def _star(ax: Axes, view: Response, rates: Reach, reach: Reach, *, loss: bool) -> None:
    """The suggestion of a race, trained or not."""
    value = None if view.star is None else view.star.loss if loss else view.star.metric
    if view.star is None or value is None:
        return
    mark = MARKS["suggested"]
    ax.plot(
        [rates.place(view.star.lr)],
        [reach.place(value)],
        mark.matplotlib,
        zorder=4,
        ms=12,
        mec=mark.light,
        mfc=mark.light,
        clip_on=False,
        label="suggested",
    )


def _nan(values: Sequence[float | None]) -> list[float]:
    return [math.nan if v is None else v for v in values]
