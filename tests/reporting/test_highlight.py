"""One rate is highlighted: of a race, the one that it says to use, in every medium."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from reporting.pages import Page
from small import blobs_problem

import etascope as es
from etascope.reporting import views
from etascope.reporting.console import Terminal
from etascope.reporting.html import figures, render
from etascope.reporting.plots import plot
from etascope.reporting.terminal import summary
from etascope.study import Study
from etascope.words import rate


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> Study:
    out = tmp_path_factory.mktemp("raced") / "study"
    finding = es.find(blobs_problem(), steps=40, budget=4, out=out, engine="serial")
    return es.open_study(finding.study)


def suggesting(study: Study, lr: float | None) -> Study:
    """The study as if its race had ended with another suggestion."""
    other = es.open_study(study.path)
    assert study.finding is not None
    other.__dict__["finding"] = replace(study.finding, lr=lr)
    return other


def shown(study: Study) -> str:
    console = Terminal(file=io.StringIO(), width=200)
    console.print(summary(study))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def stars(study: Study) -> dict[str, set[float]]:
    """The rates with a star, by medium."""
    found: dict[str, set[float]] = {}
    for figure in figures(study):
        if figure.name.startswith("response"):
            marks = [t for t in figure.data if "marker" in t]
            starred = [t for t in marks if "star" in str(t["marker"]["symbol"])]
            found[figure.name] = {lr for trace in starred for lr in trace["x"]}
    loss, metric, _ = plot(study)
    for name, ax in (("loss", loss), ("metric", metric)):
        starred = [line for line in ax.lines if line.get_marker() == "*"]
        found[name] = {float(line.get_xdata()[0]) for line in starred}  # type: ignore[index]
    found["table"] = {row.lr for row in views.table(study) if row.verdict in ("best", "suggested")}
    lines = [line.split() for line in shown(study).splitlines() if "★" in line]
    found["terminal"] = {float(words[0]) for words in lines}
    rows = re.findall(r'<tr class="best">\s*<th scope="row">([^<]*)</th>', render(study))
    found["page"] = {float(row) for row in rows}
    return found


def test_the_suggestion_is_the_one_star(raced: Study) -> None:
    """Whether it was trained, was the best of its seed, or lies between two rates."""
    middle = len(raced.lrs) // 2
    between = float(f"{(raced.lrs[middle] * raced.lrs[middle + 1]) ** 0.5:.2g}")
    assert between not in raced.lrs
    for lr in {raced.best, raced.lrs[0], raced.lrs[middle], raced.lrs[-1], between}:
        study = suggesting(raced, lr)
        assert {name: found for name, found in stars(study).items() if found != {lr}} == {}
        assert views.response(study).best == lr
        assert "★ best" not in shown(study)
        words = re.sub(r"\s+", " ", Page(render(study)).words)
        assert "★ suggested" in words
        assert "★ best" not in words
        # The JSON keeps the best of the rates that were trained, and says what it is.
        assert study.to_dict()["best"]["lr"] == raced.best


def test_without_a_suggestion_there_is_no_star(raced: Study) -> None:
    study = suggesting(raced, None)
    assert all(not found for found in stars(study).values())
    assert "★" not in Page(render(study)).words


def test_a_suggestion_between_the_rates_says_so(raced: Study) -> None:
    study = suggesting(raced, 0.00072)
    assert "0.00072" in shown(study)
    row = next(row for row in views.table(study) if row.lr == 0.00072)
    assert row.seeds == 0
    assert row.reason.startswith("not trained itself")
    below = max(lr for lr in raced.lrs if lr < 0.00072)
    assert rate(below) in row.reason


def test_a_sweep_keeps_its_best(three_seeds: Study) -> None:
    assert three_seeds.best is not None
    assert {
        name: found for name, found in stars(three_seeds).items() if found != {three_seeds.best}
    } == {}
