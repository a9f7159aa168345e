"""The table on a terminal: the signs of the page, and all that it says also in plain letters."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from etascope.reporting.palette import MARKS
from etascope.reporting.terminal import STYLES, summary
from etascope.study import Study


def shown(study: Study) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(summary(study))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["demo", "three_seeds", "all_failed"])
def test_the_signs_are_those_of_the_page(name: str, request: pytest.FixtureRequest) -> None:
    study: Study = request.getfixturevalue(name)
    text = shown(study)
    for verdict in study.verdicts.values():
        assert f"{MARKS[verdict.name].glyph} {verdict.name}" in text


def test_every_verdict_has_a_sign_of_its_own() -> None:
    assert STYLES.keys() == MARKS.keys()
    assert MARKS["suggested"] == MARKS["best"]  # of which a study has the one or the other
    assert len({mark.glyph for mark in MARKS.values()}) == len(MARKS) - 1
