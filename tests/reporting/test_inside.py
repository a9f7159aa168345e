"""The graph, the step and the update in a study's report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reporting.pages import Page, in_chromium
from small import blobs_problem

import etascope as es
from etascope.reporting.html import render
from etascope.reporting.inside import FILE, flame, inside
from etascope.study import Study


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Study:
    out = tmp_path_factory.mktemp("inside") / "study"
    study = es.sweep(blobs_problem(), [0.001, 0.1], steps=20, engine="serial", out=out)
    assert "What is trained" not in render(study)  # drawing neither trains nor writes
    assert not (study.path / FILE).exists()
    assert es.look_inside(study) == study.path / FILE
    return study


def test_a_study_keeps_what_was_seen_inside(trained: Study) -> None:
    page = render(trained)
    assert render(es.open_study(trained.path)) == page
    words = " ".join(Page(page).words.split())
    for told in ("What is trained", "One step of adam, down to", "The numbers in one update"):
        assert told in words
    assert "aten::_fused_adam_" in page
    assert "|Δθ|" in words
    identities = [a["id"] for _, a in Page(page).tags if "id" in a]
    assert len(identities) == len(set(identities))


def test_the_file_is_strict_json(trained: Study) -> None:
    json.loads((trained.path / FILE).read_text(), parse_constant=pytest.fail)


def test_a_study_from_the_disk_alone_is_not_looked_into(demo: Study) -> None:
    assert inside(demo) is None
    assert "What is trained" not in Page(render(demo)).words
    with pytest.raises(es.UsageError, match="a study from the disk knows no model"):
        es.look_inside(demo)
    with pytest.raises(es.UsageError, match="study is a str, which knows no model"):
        es.look_inside(str(demo.path))  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_file_is_no_report_less(demo: Study, content: str) -> None:
    (demo.path / FILE).write_text(content)
    assert "What is trained" not in Page(render(demo)).words


def test_bars_of_the_flame_stand_under_the_bar_that_called_them(trained: Study) -> None:
    look = inside(trained)
    assert look is not None
    assert look.step is not None
    bars = flame(look.step)
    assert (bars[0].left, bars[0].width, bars[0].row) == (0, 1, 0)
    above = {bar.row: bar for bar in bars[:1]}
    for bar in bars[1:]:
        over = above[bar.row - 1]
        assert over.left - 1e-9 <= bar.left
        assert bar.left + bar.width <= over.left + over.width + 1e-9
        above[bar.row] = bar
    assert any(bar.operator for bar in bars)


@in_chromium
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_opens_its_graph_quietly(  # type: ignore[no-untyped-def]
    trained: Study, width: int, browser, tmp_path: Path
) -> None:
    file = es.report(trained, tmp_path / "report.html")
    page = browser.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: r.url.startswith("file:") or complaints.append(r.url))
    page.goto(file.as_uri())
    page.click("[data-name=train_step]")
    assert page.locator('[data-name="train_step/adam"]').count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not complaints
    page.close()
