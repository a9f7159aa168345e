"""The report of a study: one HTML file that holds everything and asks the network for nothing.

The page carries its scripts and allows exactly these, by their hashes. It can be read without
them too: the answer, the table and the texts are plain HTML, only the figures are drawn.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etascope.caller import left_as_it_was
from etascope.errors import StudyError
from etascope.files import write_atomically
from etascope.inspection.look import Look
from etascope.reporting import drawings, inside, views, words
from etascope.reporting.compared import Comparison, compare, comparison_figure, headline
from etascope.reporting.figures import Figure, response_figure, schedule_figure
from etascope.reporting.lines import curves_figure, pair_figures
from etascope.reporting.page import TEMPLATES, VENDOR, embedded, environment, script
from etascope.reporting.reproduction import size
from etascope.study import Study, open_study

PLOTLY = VENDOR / "plotly-basic.min.js"


@left_as_it_was()
def report(
    study: Study | str | os.PathLike[str] | Sequence[Study | str | os.PathLike[str]],
    path: str | os.PathLike[str],
) -> Path:
    """Write the report of a study as one HTML file that works offline.

    Args:
        study: from `sweep` or `open_study`, or its directory; finished or not. Of several studies,
            of one problem with several optimizers, the report is their comparison.
        path: the file; it is replaced as a whole or not at all.

    Returns:
        The path of the file.

    Raises:
        UsageError: if `study` is no study, or studies cannot be compared.
        StudyError: if the file cannot be written.
    """
    target = Path(path)
    if isinstance(study, Sequence) and not isinstance(study, str):
        page = render_comparison(compare([open_study(one) for one in study])).encode()
    else:
        page = render(open_study(study)).encode()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, page)
    except OSError as error:
        raise StudyError(
            f"cannot write the report to {target}: {error.strerror or error}; name another file"
        ) from error
    return target


def render_comparison(found: Comparison) -> str:
    """The page of several optimizers as text."""
    from markupsafe import Markup

    figure = comparison_figure(found)
    scripts = [script(PLOTLY), script(TEMPLATES / "page.js")]
    return (
        environment()
        .get_template("comparison.html")
        .render(
            found=found,
            headline=headline(found),
            figures={figure.name: figure},
            data=Markup(embedded({figure.name: {"data": figure.data, "layout": figure.layout}})),
            scripts=[Markup(part.text) for part in scripts],
            allowed=" ".join(part.allowed for part in scripts),
        )
    )


def render(study: Study) -> str:
    """The page as text."""
    from markupsafe import Markup

    found, response = figures(study), views.response(study)
    pair, reference = views.high_and_low(study), views.reference_curves(study)
    scripts = [script(PLOTLY), script(TEMPLATES / "page.js")]
    look = inside.inside(study)
    if look is not None and look.graph is not None:
        scripts += drawings.graph_scripts()
    return (
        environment()
        .get_template("report.html")
        .render(
            study=study,
            figures={figure.name: figure for figure in found},
            data=Markup(embedded({f.name: {"data": f.data, "layout": f.layout} for f in found})),
            scripts=[Markup(part.text) for part in scripts],
            allowed=" ".join(part.allowed for part in scripts),
            answer=views.answer(study),
            response=response,
            shown={point.verdict for point in response.points}
            | ({"suggested"} if response.star else set()),
            pair=pair,
            rows=views.table(study),
            reference=reference,
            behind=[b for c in pair if c and (b := views.behind(c.lr, reference))],
            schedule=views.adam_schedule(study),
            reproduction=views.reproduce(study),
            folder=study.path.resolve().name,
            size=size(study),
            **_looked(look),
            cost=words.duration(sum(history.seconds for history in study.trials)),
        )
    )


def figures(study: Study) -> list[Figure]:
    """Every figure that the study has records for."""
    response, schedule = views.response(study), views.adam_schedule(study)
    found = [
        response_figure(response, "loss"),
        response_figure(response, "metric"),
        *pair_figures(
            views.high_and_low(study), views.reference_curves(study), response, study.horizon
        ),
        curves_figure(views.curves(study), response.chance),
        schedule_figure(schedule) if schedule else None,
    ]
    return [figure for figure in found if figure is not None]


def _looked(look: Look | None) -> dict[str, Any]:
    """What the templates take of the inside of a training."""
    if look is None:
        return {"look": None}
    bars = inside.flame(look.step) if look.step else []
    taken = {"look": look, "bars": bars, "updates": inside.tables(look)}
    if look.graph is None:
        return taken
    return {
        **taken,
        **drawings.panel(look.graph, wheel="page"),
        "graph_summary": drawings.summary(look.graph),
    }
