"""The figures over the steps, as plotly's JSON: the failing and the working rate, all losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from etascope.reporting.axes import Reach, log_ticks, loss_reach, plain_reach, rate_reach
from etascope.reporting.ends import ends
from etascope.reporting.figures import (
    INK,
    MUTED,
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
from etascope.reporting.palette import MARKS, rate_colour, scale
from etascope.reporting.views import Curve, HighLow, Reference, ReferenceCurve, Response, behind
from etascope.reporting.words import number, rate, share

LABELLED = 8  # rates that are labelled at the end of their lines; more of them get a colour bar
FEW = 24  # trials that are drawn with every point and a trend; more of them get one line each


def pair_figures(
    pair: HighLow, reference: Reference | None, against: Response, horizon: int
) -> list[Figure]:
    """The metric over the steps of the failing and the working rate, on the same axes."""
    shown = [(n, c) for n, c in (("high", pair.high), ("low", pair.low)) if c and c.probe.steps]
    values = [v for _, c in shown for v in (*c.probe.values, *c.valid_metric, c.test_metric)]
    reach = plain_reach([*values, against.majority])
    metric = against.metric or "metric"
    return [
        _pair_figure(
            name, curve, behind(curve.lr, reference), against.majority, (metric, horizon, reach)
        )
        for name, curve in shown
    ]


def _pair_figure(
    name: str,
    curve: Curve,
    behind: ReferenceCurve | None,
    majority: float | None,
    frame: tuple[str, int, Reach],
) -> Figure:
    metric, horizon, reach = frame
    colour = f"var(--{MARKS[curve.verdict].css})"
    traces = []
    if majority is not None:
        traces.append(line((0, horizon), (majority, majority), MUTED, width=1, dash="dot"))
        traces.append(
            label(horizon, majority + 0.09, f"commonest class {share(majority)}", MUTED, "top left")
        )
    if behind is not None:
        style = {"width": 2, "dash": "dash", "opacity": 1}
        told = {
            "hoverinfo": None,
            "hovertemplate": f"{behind.made_by}, step %{{x}}: %{{y:.3f}}<extra></extra>",
        }
        series = behind.accuracy
        trend = reach.places(series.trend)
        traces.append(line(series.trend_steps, trend, "var(--reference)", **style, **told))
    traces += [*_probe(curve, colour, plain(metric), reach), *beyond(reach, horizon)]
    held = {"type": "scatter", "mode": "markers"}
    told = {"hovertemplate": f"held-out {plain(metric)} at step %{{x}}: %{{y:.3f}}<extra></extra>"}
    marker = {"symbol": "circle-open", "size": 8, "color": INK, "line": {"width": 1.5}}
    x, y = list(curve.valid_steps), reach.places(curve.valid_metric)
    traces.append({**held, **told, "x": x, "y": y, "marker": marker, "cliponaxis": False})
    made = layout(
        axis("step", range=[-0.01 * horizon, 1.01 * horizon]),
        value_axis(plain(metric), reach, 6),
    )
    end = curve.valid_metric[-1] if curve.valid_metric else None
    alt = (
        f"{metric} on the training batch over the steps at rate {rate(curve.lr)}, which is "
        f"{curve.verdict}; held out it ends at {share(end)}"
        + (f"; a dashed grey line is {behind.made_by}." if behind else ".")
    )
    return Figure(f"pair-{name}", alt, traces, made)


def _probe(curve: Curve, colour: str, metric: str, reach: Reach) -> list[Trace]:
    """The metric of the training batches: the points faint and their trend over them."""
    told = {
        "hoverinfo": None,
        "hovertemplate": f"batch {metric} at step %{{x}}: %{{y:.3f}}<extra></extra>",
    }
    series, values = curve.probe, reach.places(curve.probe.values)
    if len(series.steps) <= len(series.trend_steps):
        return [line(series.steps, values, colour, **told)]
    faint = line(series.steps, values, colour, width=1, opacity=0.35, **told)
    return [faint, line(series.trend_steps, reach.places(series.trend), colour)]


def curves_figure(curves: Sequence[Curve], chance: float | None) -> Figure | None:
    """The training loss of every trial over its steps, both axes logarithmic where they can be."""
    curves = [c for c in curves if any(v is not None for v in c.loss.values)]
    if not curves:
        return None
    lrs = sorted({c.lr for c in curves})
    rates = rate_reach(lrs, 0)
    values = [v for c in curves for v in c.loss.values]
    reach = loss_reach(values, chance, 0.04)
    last = max(2, *(c.loss.steps[-1] + 1 for c in curves))
    labelled = len(lrs) <= LABELLED
    edge = last**1.05 if labelled else float(last)  # room for the leaders of the names
    traces: list[Trace] = []
    if chance is not None:
        traces.append(line((1, edge), [reach.place(chance)] * 2, MUTED, width=1, dash="dot"))
    for curve in sorted(curves, key=lambda c: -c.lr):
        colour = rate_colour(rates.place(curve.lr), rates.ends)
        traces += _loss(curve, colour, reach, whole=len(curves) <= FEW)
    if labelled:
        traces += _end_labels(curves, edge, reach)
    else:
        traces.append(_colour_bar(lrs))
    traces += beyond(reach, last)
    made = layout(
        axis(
            "update (step + 1)",
            log=True,
            ticks=log_ticks(1, last),
            range=[0, math.log10(edge)],
        ),
        value_axis("training loss", reach, 8),
        right=58 if labelled else 20,
    )
    alt = f"Training loss over the steps for {len(curves)} trials. " + " ".join(
        f"{rate(c.lr)}: highest {number(max(v for v in c.loss.values if v is not None))}, "
        f"ends at {number(c.loss.trend[-1])}."
        for c in curves[:12]
    )
    return Figure("curves", alt, traces, made)


def _loss(curve: Curve, colour: str, reach: Reach, *, whole: bool) -> list[Trace]:
    """One trial: every point faint and the trend over it, or with many trials one thin line."""
    told = {
        "hoverinfo": None,
        "hovertemplate": f"<b>{rate(curve.lr)}</b>, seed {curve.seed}<br>"
        "loss %{y:.4g} before update %{x}<extra></extra>",
    }
    series = curve.loss
    steps, values = [s + 1 for s in series.steps], reach.places(series.values)
    if not whole:
        return [line(steps, values, colour, width=1, opacity=0.6, **told)]
    faint = line(steps, values, colour, width=1, opacity=0.3, **told)
    middle = [s + 1 for s in series.trend_steps]
    traces = [faint, line(middle, reach.places(series.trend), colour, width=2.2)]
    if curve.failed_at is not None:
        end = [(s, v) for s, v in zip(steps, values, strict=True) if v is not None][-1]
        mark = {"symbol": "x", "size": 10, "color": colour}
        point = {"type": "scatter", "mode": "markers", "x": [end[0]], "y": [end[1]], "marker": mark}
        traces.append({**point, "hoverinfo": "skip"})
    return traces


def _end_labels(curves: Sequence[Curve], edge: float, reach: Reach) -> list[Trace]:
    """The rates in a column at the right edge, a thin line leading from each curve to its name."""
    rates = rate_reach([c.lr for c in curves], 0)
    traces: list[Trace] = []
    for end in ends(curves, reach, 0.055):
        colour = rate_colour(rates.place(end.lr), rates.ends)
        led = ((end.update, edge), (end.value, end.height))
        traces.append(line(*led, colour, width=1, dash="dot"))
        traces.append(label(edge, end.height, f" {rate(end.lr)}", colour))
    return traces


def _colour_bar(lrs: Sequence[float]) -> Trace:
    """An invisible point that carries the scale from colour to rate."""
    reach = rate_reach(lrs, 0)
    low, high, ticks = reach.low, reach.high, log_ticks(*reach.ends)

    bar = {
        "title": {"text": "η"},
        "tickvals": [math.log10(v) for v in ticks.values],
        "ticktext": ticks.texts,
        "thickness": 10,
        "outlinewidth": 0,
    }
    marker = {
        "color": [low, high],
        "cmin": low,
        "cmax": high,
        "colorscale": scale(),
        "showscale": True,
        "colorbar": bar,
        "size": 0.1,
        "opacity": 0,
    }
    point = {"type": "scatter", "mode": "markers", "x": [None, None], "y": [None, None]}
    return {**point, "marker": marker, "hoverinfo": "skip"}
