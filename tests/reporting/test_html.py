"""The page: complete, strict about what may run, and right for any study."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from reporting.pages import Page
from reporting.written_studies import Builder, facts

import etascope as es
from etascope.errors import StudyError
from etascope.reporting.html import PLOTLY, embedded, figures, render, report
from etascope.study import Study


@pytest.fixture(
    params=["demo", "three_seeds", "unfinished", "all_failed", "no_metric", "one", "nothing"]
)
def any_study(request: pytest.FixtureRequest, build: Builder) -> Study:
    if request.param == "one":
        return build({0.001: 10}, "one", steps=10)
    if request.param == "nothing":
        return build({0.001: 10}, "nothing", steps=10, reached={0.001: 0})
    study: Study = request.getfixturevalue(request.param)
    return study


def test_every_study_has_a_page(any_study: Study) -> None:
    page = Page(render(any_study))
    data = page.data()
    drawn = {a["id"] for tag, a in page.tags if tag == "div" and a.get("role") == "img"}
    assert drawn == {f"plot-{name}" for name in data}
    assert all(a["aria-label"] for tag, a in page.tags if a.get("role") == "img")
    identities = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identities) == len(set(identities))
    for lr in any_study.lrs:
        assert f"{lr:g}".replace("e-0", "e-") in page.words


def test_figures_hold_no_text_where_plotly_expects_numbers(any_study: Study) -> None:
    for figure in figures(any_study):
        for trace in figure.data:
            assert len(trace["x"]) == len(trace["y"])
            for value in (*trace["x"], *trace["y"]):
                assert value is None or abs(value) < float("inf")
        for axis in ("xaxis", "yaxis"):
            low, high = figure.layout[axis]["range"]
            assert low < high


def test_the_demo_has_all_figures(demo: Study, no_metric: Study) -> None:
    names = ["response-loss", "response-metric", "pair-high", "pair-low", "curves", "schedule"]
    assert [figure.name for figure in figures(demo)] == names
    assert [figure.name for figure in figures(no_metric)] == ["response-loss", "curves"]


def test_only_the_scripts_of_the_page_may_run(demo: Study) -> None:
    page = Page(render(demo))
    policies = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert len(policies) == 1
    policy = dict(part.strip().split(" ", 1) for part in str(policies[0]).split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["style-src"] == "'unsafe-inline'"
    assert policy["img-src"] == "data: blob:"
    running = [text for attributes, text in page.scripts if "type" not in attributes]
    hashes = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in running]
    assert policy["script-src"].split() == [f"'sha256-{digest}'" for digest in hashes]
    assert "unsafe-eval" not in str(policies[0])


def test_nothing_is_asked_of_the_network(demo: Study) -> None:
    page = Page(render(demo))
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "form", "base")
        assert not {"src", "href", "srcset", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]


def test_readable_without_scripts(demo: Study) -> None:
    words = re.sub(r"\s+", " ", Page(render(demo)).words)
    assert "Of the rates trained to the end, use 0.001." in words
    assert "From 0.1 upward training fails" in words
    assert "the share of the most common class" in words
    assert "Held-out loss against the learning rate, one mark a trial. At 1e-5:" in words
    assert "Scripts are off" in words


def test_hostile_names_stay_text(build: Builder) -> None:
    evil = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
    problem = replace(facts(evil), metric=evil)
    study = build({0.001: 100, 0.5: 100}, steps=100, problem=problem, reference=evil)
    page = Page(render(study))
    assert len(page.scripts) == 3
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert evil in page.words


def test_embedded_json_is_strict() -> None:
    text = embedded({"a": [float("nan"), "<!-- <script>"]})
    assert "<" not in text
    assert json.loads(text) == {"a": ["nan", "<!-- <script>"]}


def test_written_as_a_whole(demo: Study, tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "a.html"
    assert es.report(demo, target) == target
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [p.name for p in target.parent.iterdir()] == ["a.html"]
    assert report(demo, str(target)) == target


def test_a_file_that_cannot_be_written_is_one_sentence(demo: Study, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StudyError, match=r"cannot write the report to .*taken: .*; name another"):
        report(demo, tmp_path / "taken")
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot write the report"):
        report(demo, tmp_path / "file" / "a.html")


def test_vendored_scripts_are_the_listed_ones() -> None:
    listed = (PLOTLY.parent / "README.md").read_text(encoding="utf-8")
    for script in PLOTLY.parent.glob("*.js"):
        assert f"`{hashlib.sha256(script.read_bytes()).hexdigest()}`" in listed
        assert (PLOTLY.parent / f"{script.name.split('.')[0]}.LICENSE").exists()
        text = script.read_text(encoding="utf-8")
        assert not re.search(r"</script|<!--|\r", text)  # would end or change the element
