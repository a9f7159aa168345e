"""The table of a study on a terminal, with the answer above it."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from etascope.reporting.answer import answer
from etascope.reporting.compared import Comparison
from etascope.reporting.compared import headline as compared_headline
from etascope.reporting.console import Lines
from etascope.reporting.found import standing
from etascope.reporting.highlight import SUGGESTED
from etascope.reporting.palette import MARKS
from etascope.reporting.rates import Row, Spread, table
from etascope.reporting.words import number, rate, share
from etascope.search.finding import Finding
from etascope.search.range_test import RangeTest
from etascope.study import Study
from etascope.words import shortened, visible

STYLES = {
    "suggested": "bold green",
    "best": "bold green",
    "good": "green",
    "too slow": "blue",
    "stuck": "yellow",
    "diverged": "red",
    "undecided": "dim",
}


def summary(study: Study) -> RenderableType:
    """The answer, the table with a reason for each rate, and what is not known.

    Loss and metric are those on held-out examples, `test` the metric on the test examples, `peak`
    the largest training loss.
    """
    if study.finding is not None:
        return _race(study, study.finding)
    said = answer(study)
    rows = table(study)
    metric = heading(study.problem.metric)
    columns = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    names = ("rate", "seeds", "steps", "loss", metric, "test", "peak")
    # One row with a line a rate in each cell: the terminal's table takes its time by the row.
    *cells, verdicts = zip(*[_cells(row) for row in rows], strict=True) if rows else ((),)
    known = [(name, texts) for name, texts in zip(names, cells, strict=False) if any(texts)]
    for name, texts in known:
        width = max(map(len, texts)) if name == "rate" else None  # a rate is never cut
        columns.add_column(name, justify="right", no_wrap=True, min_width=width)
    columns.add_column("verdict", no_wrap=True)
    if rows:
        columns.add_row(*(Lines(texts) for _, texts in known), Lines(verdicts))
    reasons = Table.grid(padding=(0, 2, 0, 0))
    reasons.add_column(justify="right", no_wrap=True)
    reasons.add_column()
    for row in rows:
        reasons.add_row(rate(row.lr), Text(row.reason))
    return Group(
        Text(said.headline, style="bold"),
        *(Text(sentence) for sentence in said.sentences[:2]),
        "",
        columns,
        "",
        reasons,
        "",
        *(Padding(Text(f"note: {caveat}", style="dim"), 0) for caveat in said.caveats),
    )


def _race(study: Study, finding: Finding) -> RenderableType:
    """The answer of `find`, and one line a rate of its race."""
    said = answer(study)
    columns = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    score = "loss" if finding.objective == "loss" else heading(study.problem.metric)
    for name in ("rate", "seeds", "steps", score):
        columns.add_column(name, justify="right", no_wrap=True)
    columns.add_column("in the race", no_wrap=True)
    turned = -1 if finding.objective == "metric" and study.problem.higher_is_better else 1
    rows = []
    for found in finding.rates:
        told = standing(finding, found)
        style = STYLES[told] if told == SUGGESTED else "green" if told == "as good" else ""
        told = f"{MARKS[told].glyph} {told}" if told == SUGGESTED else told
        cells = [rate(found.lr), str(found.seeds), str(found.steps), number(turned * found.score)]
        rows.append((found.lr, cells, Text(told, style=style)))
    if finding.lr is not None and finding.lr not in study.lrs:
        told = f"{MARKS[SUGGESTED].glyph} {SUGGESTED}, between the rates that were trained"
        cells = [rate(finding.lr), "", "", ""]
        rows.append((finding.lr, cells, Text(told, style=STYLES[SUGGESTED])))
    for _, cells, words in sorted(rows, key=lambda row: row[0]):
        columns.add_row(*cells, words)
    return Group(
        Text(said.headline, style="bold"),
        *map(Text, said.sentences),
        "",
        columns,
        *(Text(f"note: {caveat}", style="dim") for caveat in said.caveats),
    )


def curve_table(found: RangeTest) -> RenderableType:
    """The suggestions of a range test, by seed, and how far to trust them."""
    columns = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    columns.add_column("rule")
    columns.add_column("rate", justify="right")
    columns.add_column("by seed", justify="right")
    rules = {
        "steepest": found.steepest,
        "valley": found.valley,
        "minimum / 10": found.minimum,
    }
    for name, said in rules.items():
        each = ", ".join("none" if lr is None else f"{lr:.2g}" for lr in said.each)
        columns.add_row(name, "none" if said.lr is None else f"{said.lr:.2g}", each)
    return Group(columns, "", Text(f"{found.note[0].upper()}{found.note[1:]}."))


def comparison_table(found: Comparison) -> RenderableType:
    """One line an optimizer: its best rate, what else is as good, and what missing it costs."""
    columns = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    columns.add_column("optimizer", no_wrap=True)
    for name in ("best", "as good", "decades", "loss", "sensitivity"):
        columns.add_column(name, justify="right", no_wrap=True)
    columns.add_column("settled")
    for row in found.rows:
        columns.add_row(
            row.name,
            "none" if row.lr is None else rate(row.lr),
            "" if row.band is None else f"{row.band[0]:.2g} to {row.band[1]:.2g}",
            "" if row.decades is None else f"{row.decades:.2f}",
            "" if row.loss is None else number(row.loss),
            "" if row.sensitivity is None else number(row.sensitivity),
            "yes" if row.settled else "no",
        )
    reach = f"from {rate(found.reach[0])} to {rate(found.reach[1])}"
    note = f"Sensitivity: the loss that a rate drawn at random {reach} is expected to lose."
    return Group(Text(compared_headline(found), style="bold"), "", columns, "", Text(note, "dim"))


def heading(metric: str | None) -> str:
    """The name of a metric above its column."""
    return shortened(visible(metric or "metric"), 24)


def _cells(row: Row) -> list[str | Text]:
    low, high = row.steps
    as_of = f" (at step {row.as_of})" if row.provisional and row.as_of else ""
    return [
        rate(row.lr),
        str(row.seeds),
        str(high) if low == high else f"{low}–{high}",
        _mean(row.valid_loss),
        _mean(row.metric, metric=True),
        _mean(row.test_metric, metric=True),
        _mean(row.peak_loss),
        Text(f"{MARKS[row.verdict].glyph} {row.verdict}{as_of}", style=STYLES[row.verdict]),
    ]


def _mean(spread: Spread | None, *, metric: bool = False) -> str:
    """The mean over seeds; `±` half the range where there are several."""
    if spread is None:
        return ""
    write = share if metric else number
    if spread.seeds == 1:
        return write(spread.mean)
    return f"{write(spread.mean)} ±{write((spread.high - spread.low) / 2)}"
