"""The figures of a study with matplotlib: for a notebook, a script, or as PNG files."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from etascope.caller import left_as_it_was
from etascope.errors import StudyError, UsageError
from etascope.files import write_atomically
from etascope.reporting import views
from etascope.study import Study, open_study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import LayoutEngine

DOTS = 200  # per inch of a PNG file


@left_as_it_was()
def plot(
    study: Study | str | os.PathLike[str], axes: Sequence[Axes] | None = None
) -> tuple[Axes, Axes, Axes]:
    """Draw a study in three panels: held-out loss and metric against the rate, and all losses.

    Args:
        study: from `sweep` or `open_study`, or its directory; finished or not.
        axes: three matplotlib axes to draw on; by default those of a new figure, which is made
            without pyplot: `axes[0].figure.savefig("a.png")` writes it, a notebook shows it.

    Returns:
        The three axes.

    Raises:
        UsageError: if matplotlib is not installed, `study` is no study, or `axes` are not three.
    """
    figure_class = _matplotlib()
    from etascope.reporting.panels import curves_panel, key, response_panel

    if axes is None:
        axes = figure_class(figsize=(14, 4.2), layout=_layout()).subplots(1, 3)
    drawn = list(axes)
    if len(drawn) != 3:
        raise UsageError(f"axes holds {len(drawn)} axes; plot draws on three")
    loss, metric, curves = drawn
    study = open_study(study)
    response = views.response(study)
    response_panel(loss, response, "loss")
    key(loss, 3)
    response_panel(metric, response, "metric")
    curves_panel(curves, views.curves(study), response.chance)
    return loss, metric, curves


@left_as_it_was()
def save_plots(study: Study, directory: str | os.PathLike[str]) -> list[Path]:
    """Write the figures of the report as PNG files.

    Args:
        study: from `sweep` or `open_study`, finished or not.
        directory: where; it is made if it is not there.

    Returns:
        The files: `response.png`, `curves.png`, and where the study has records for them
        `high-and-low.png` and `schedule.png`.

    Raises:
        UsageError: if matplotlib is not installed.
        StudyError: if a file cannot be written.
    """
    figure_class = _matplotlib()
    folder = Path(directory)
    made = {
        "response": _response(figure_class, study),
        "high-and-low": _pair(figure_class, study),
        "curves": _curves(figure_class, study),
        "schedule": _schedule(figure_class, study),
    }
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in made.items():
            if figure is not None:
                path = folder / f"{name}.png"
                picture = io.BytesIO()
                figure.savefig(picture, dpi=DOTS, facecolor="white", format="png")
                write_atomically(path, picture.getvalue())
                written.append(path)
    except OSError as error:
        raise StudyError(
            f"cannot write the plots to {folder}: {error.strerror or error}; name another folder"
        ) from error
    return written


def _matplotlib() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "plots need matplotlib; install it with: pip install 'etascope[plot]'"
        ) from None
    return Figure


def _layout() -> LayoutEngine:
    """Panels with air around them."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12)


def _response(make: type[Figure], study: Study) -> Figure:
    from etascope.reporting.panels import response_panel

    view = views.response(study)
    panels = ["loss", "metric"] if view.metric else ["loss"]
    figure = make(figsize=(5.2 * len(panels), 4.0), layout=_layout())
    for ax, field in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        response_panel(ax, view, field)
    handles, words = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        words,
        loc="outside upper left",
        ncols=7 if len(panels) > 1 else 4,
        frameon=False,
        fontsize=9,
    )
    return figure


def _pair(make: type[Figure], study: Study) -> Figure | None:
    from etascope.reporting.panels import pair_panel

    curves = [c for c in views.high_and_low(study) if c is not None and c.probe.steps]
    if not curves:
        return None
    reference, against = views.reference_curves(study), views.response(study)
    figure = make(figsize=(5.2 * len(curves), 3.8), layout=_layout())
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for ax, curve in zip(panels, curves, strict=True):
        behind = views.behind(curve.lr, reference)
        pair_panel(ax, curve, behind, against, study.horizon)
    return figure


def _curves(make: type[Figure], study: Study) -> Figure:
    from etascope.reporting.panels import curves_panel

    figure = make(figsize=(9.0, 4.6), layout=_layout())
    curves_panel(figure.subplots(), views.curves(study), views.response(study).chance)
    return figure


def _schedule(make: type[Figure], study: Study) -> Figure | None:
    from etascope.reporting.panels import schedule_panel

    view = views.adam_schedule(study)
    if view is None:
        return None
    figure = make(figsize=(5.6, 4.0), layout=_layout())
    schedule_panel(figure.subplots(), view)
    return figure
