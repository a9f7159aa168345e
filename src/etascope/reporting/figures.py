"""The figures of the page as plotly's JSON: pure functions of views, without any colour of a theme.

Colours are written `var(--name)`; the page replaces them by its own, so that one figure serves
light, dark and print. Lines and labels are traces, not shapes and annotations: traces take data
coordinates on every kind of axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from etascope.reporting.axes import (
    Reach,
    Ticks,
    log_ticks,
    loss_reach,
    plain_reach,
    rate_reach,
    rate_title,
)
from etascope.reporting.palette import MARKS
from etascope.reporting.views import AdamSchedule, Response
from etascope.reporting.words import number, rate, share
from etascope.words import visible

Trace = dict[str, Any]
MANY = 60  # points from which on they are drawn smaller
INK, MUTED, FAINT = "var(--ink)", "var(--muted)", "var(--faint)"
BAND, EDGE = "var(--band)", "var(--edge)"


class Figure(NamedTuple):
    """One plot: `alt` tells it to whoever does not see it."""

    name: str
    alt: str
    data: list[Trace]
    layout: dict[str, Any]


def axis(title: str, *, log: bool = False, ticks: Ticks | None = None, **more: Any) -> Trace:
    """An axis with hardly any ink: no zero line, light grid, title in words."""
    made: Trace = {
        "title": {"text": title, "standoff": 10},
        "type": "log" if log else "linear",
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "gridcolor": "var(--grid)",
        "automargin": True,
        "fixedrange": False,
    }
    if ticks is not None:
        made |= {"tickmode": "array", "tickvals": ticks.values, "ticktext": ticks.texts}
    return {**made, **more}


def layout(x: Trace, y: Trace, *, right: int = 16) -> dict[str, Any]:
    """The frame that all figures share."""
    return {
        "margin": {"l": 52, "r": right, "t": 14, "b": 46},
        "xaxis": {**x, "showgrid": False, "showline": True, "linecolor": "var(--axis)"},
        "yaxis": y,
        "showlegend": False,  # the page has keys in words, which a phone can wrap
        "hovermode": "closest",
        "dragmode": "zoom",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }


def line(x: Sequence[Any], y: Sequence[Any], colour: str, **more: Any) -> Trace:
    """A line without markers; `width`, `dash` and `opacity` are its own, the rest the trace's."""
    style = {"color": colour, "width": more.pop("width", 2), "dash": more.pop("dash", "solid")}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(x),
        "y": list(y),
        "line": style,
        "hoverinfo": "skip",
        **more,
    }


def label(x: float, y: float, text: str, colour: str, where: str = "middle right") -> Trace:
    """Text at a point, with a halo of the page's colour so that lines do not cross it."""
    return {
        "type": "scatter",
        "mode": "text",
        "x": [x],
        "y": [y],
        "text": [text],
        "textposition": where,
        "textfont": {"color": colour, "shadow": HALO},
        "cliponaxis": False,
        "hoverinfo": "skip",
    }


def plain(text: str) -> str:
    """A user's name as plotly is to show it: as it is, where it would read tags or values in it.

    >>> plain("a<b>"), plain("%{y}")
    ('a&lt;b&gt;', '%&#123;y}')
    """
    return escape(visible(text), quote=False).replace("%{", "%&#123;")


HALO = ", ".join(f"{x}px {y}px 3px var(--page)" for x in (-1, 0, 1) for y in (-1, 0, 1))


def response_figure(view: Response, field: str) -> Figure | None:
    """The last held-out loss or metric of every trial against its rate; None without values."""
    loss = field == "loss"
    values = [p.loss if loss else p.metric for p in view.points]
    if all(v is None for v in values):
        return None
    name = "loss" if loss else view.metric or "metric"
    level = view.chance if loss else view.majority
    reach = loss_reach(values, level, 0.08) if loss else plain_reach([*values, level])
    if loss:  # room for the words above the chance line
        reach = reach._replace(high=reach.high + 0.1 * (reach.high - reach.low))
    rates = rate_reach([p.lr for p in view.points])
    traces = [*_edge(view, rates, reach), *_band(view, rates, reach)]
    traces += _common(view, rates, reach, loss)
    if level is not None:
        knowing = (
            f"{view.chance_name}: {number(level)}" if loss else f"commonest class: {share(level)}"
        )
        drawn = reach.place(level)
        traces.append(line(rates.ends, (drawn, drawn), MUTED, width=1, dash="dot"))
        traces.append(_level_label(rates.ends[0], drawn, knowing, reach, above=loss))
    # A broken trial without a finite value is shown all the same, near the worse edge.
    worse = reach.at(0.95 if loss or not view.higher_is_better else 0.05)
    traces += _marks(view, values, (rates, reach), worse, plain(name))
    traces += _star(view, (rates, reach), loss, plain(name))
    traces += beyond(reach, rates.ends[1])
    y = value_axis(f"held-out {plain(name)}", reach, 6)
    ticks = log_ticks(*rates.ends)
    x = axis(rate_title(rates), log=True, ticks=ticks, range=[rates.low, rates.high])
    alt = _response_alt(view, values, name)
    return Figure(f"response-{field}", alt, traces, layout(x, y))


def value_axis(title: str, reach: Reach, most: int) -> Trace:
    """The axis of losses or of a metric."""
    ticks = log_ticks(*reach.ends, most) if reach.log else None
    return axis(title, log=reach.log, ticks=ticks, range=[reach.low, reach.high])


def beyond(reach: Reach, x: float) -> list[Trace]:
    """What lies beyond an axis, in words at its ends."""
    return [label(x, reach.at(place), text, MUTED, "middle left") for text, place in reach.beyond]


def _level_label(x: float, level: float, text: str, reach: Reach, *, above: bool) -> Trace:
    """Words beside a level line, as far from it as marks that lie on it need."""
    shift = (0.035 if above else -0.035) * (reach.high - reach.low)
    y = level * 10**shift if reach.log else level + shift
    return label(x, y, text, MUTED, "top right" if above else "bottom right")


def _band(view: Response, rates: Reach, reach: Reach) -> list[Trace]:
    if view.band is None:
        return []
    low, high = rates.span(view.band)
    bottom, top = reach.ends
    if low == high:
        return [line((low, low), (bottom, top), BAND, width=10)]
    fill: Trace = {"fill": "toself", "fillcolor": BAND}
    corners = ((low, high, high, low, low), (bottom, bottom, top, top, bottom))
    return [line(*corners, BAND, width=0, **fill)]


def _edge(view: Response, rates: Reach, reach: Reach) -> list[Trace]:
    """The interval in which training breaks."""
    if view.edge is None:
        return []
    bottom, top = reach.ends
    fill: Trace = {"fill": "toself", "fillcolor": EDGE}
    tried = [point.lr for point in view.points]
    low, high = rates.span(Reach(min(tried), max(tried), log=False).span(view.edge))
    corners = ((low, high, high, low, low), (bottom, bottom, top, top, bottom))
    return [line(*corners, EDGE, width=0, **fill)]


def _common(view: Response, rates: Reach, reach: Reach, loss: bool) -> list[Trace]:
    """The line through all rates at the last step that all of them reached."""
    if view.common is None:
        return []
    heights = reach.places(view.common.loss if loss else view.common.metric)
    return [line(rates.places(view.common.lrs), heights, FAINT, width=1.5)]


def _star(view: Response, axes: tuple[Reach, Reach], loss: bool, name: str) -> list[Trace]:
    """The suggestion of a race, trained or not."""
    value = None if view.star is None else view.star.loss if loss else view.star.metric
    if view.star is None or value is None:
        return []
    told = f"<b>{rate(view.star.lr)}</b> · suggested<br>{name} {number(value)} expected"
    mark = MARKS["suggested"]
    rim = {"width": 1, "color": "var(--page)"}
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [axes[0].place(view.star.lr)],
            "y": [axes[1].place(value)],
            "text": [told],
            "hovertemplate": "%{text}<extra></extra>",
            "cliponaxis": False,
            "marker": {
                "symbol": mark.plotly,
                "size": 15,
                "color": f"var(--{mark.css})",
                "line": rim,
            },
        }
    ]


def _marks(
    view: Response,
    values: Sequence[float | None],
    axes: tuple[Reach, Reach],
    worse: float,
    name: str,
) -> list[Trace]:
    traces, (rates, reach) = [], axes
    for verdict, mark in MARKS.items():
        chosen = [
            (p, v)
            for p, v in zip(view.points, values, strict=True)
            if p.verdict == verdict and (v is not None or p.broken)
        ]
        if not chosen:
            continue
        told = [
            f"<b>{rate(p.lr)}</b> · {p.verdict}{' so far' if p.provisional else ''}<br>{name} "
            f"{number(v) if v is not None else 'none that is finite'} at step {number(p.step)}"
            f"<br>seed {p.seed}"
            for p, v in chosen
        ]
        hollow = [mark.plotly + ("-open" if p.provisional else "") for p, _ in chosen]
        # A rim of the page's colour keeps seeds apart; a hollow mark is nothing but its rim.
        rims = [2 if p.provisional else 1 for p, _ in chosen]
        size = 14 if verdict == "best" else 11 if len(view.points) <= MANY else 7
        sizes = [size - p.provisional for p, _ in chosen]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [rates.place(p.lr) for p, _ in chosen],
                "y": [worse if v is None else reach.place(v) for _, v in chosen],
                "text": told,
                "hovertemplate": "%{text}<extra></extra>",
                "cliponaxis": False,
                "marker": {
                    "symbol": hollow,
                    "size": sizes,
                    "color": f"var(--{mark.css})",
                    "line": {"width": rims, "color": "var(--page)"},
                },
            }
        )
    return traces


def _response_alt(view: Response, values: Sequence[float | None], name: str) -> str:
    parts = [f"Held-out {name} against the learning rate, one mark a trial."]
    shown: dict[float, list[str]] = {}
    for point, value in zip(view.points, values, strict=True):
        shown.setdefault(point.lr, []).append(number(value))
    if len(shown) <= 12:
        parts += [f"At {rate(lr)}: {', '.join(texts)}." for lr, texts in shown.items()]
    else:
        parts.append(f"{len(shown)} rates from {rate(min(shown))} to {rate(max(shown))}.")
    return " ".join(parts)


def schedule_figure(view: AdamSchedule) -> Figure:
    """Adam's factor lr_t over the steps, both axes logarithmic, with the rate it tends to."""
    reach = rate_reach([v for r in view.rates for v in (*r.effective, r.lr)])
    reach = reach._replace(high=reach.high + 0.1)
    last = max(r.steps[-1] for r in view.rates)
    traces = []
    for shown in view.rates:
        colour = "var(--diverged)" if shown.role == "fails" else "var(--best)"
        level = reach.place(shown.lr)
        traces.append(line((1, last), (level, level), colour, width=1, dash="dot"))
        hover = "step %{x}: lr<sub>t</sub> = %{y:.3g}<extra></extra>"
        told = {"hoverinfo": None, "hovertemplate": hover}
        factor = line(shown.steps, reach.places(shown.effective), colour, width=2.5, **told)
        factor["line"]["simplify"] = False  # few points and a smooth curve: none is to be left out
        traces.append(factor)
        traces.append(
            label(1, 1.08 * level, f"η = {rate(shown.lr)}, {shown.role}", colour, "top right")
        )
    y = value_axis("lr<sub>t</sub>", reach, 6)
    x = axis("step t", log=True, ticks=log_ticks(1, last), range=[0, rate_reach((1, last)).high])
    alt = (
        "Adam's lr_t over the steps: it dips in the first steps and rises to the rate. "
        + " ".join(
            f"At {rate(r.lr)}: {number(r.effective[0])} at step 1, "
            f"{number(min(r.effective))} at its lowest, "
            f"{number(r.effective[-1])} at step {number(r.steps[-1])}."
            for r in view.rates
        )
    )
    return Figure("schedule", alt, traces, layout(x, y))
