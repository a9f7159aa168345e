"""The studies that the tests of the report share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from reporting.pages import CHROMIUM, QUIET
from reporting.written_studies import CHANCE, DEMO, Builder, facts, write_study

from etascope.records import Chance
from etascope.study import Study


@pytest.fixture
def build(tmp_path: Path) -> Builder:
    """`write_study` below a temporary directory."""

    def make(targets: Mapping[float, int], name: str = "study", **options: Any) -> Study:
        return write_study(tmp_path / name, targets, **options)

    return make


@pytest.fixture
def demo(build: Builder) -> Study:
    """Two rates trained to 1000 steps and five paused at 200, one seed."""
    return build(DEMO, "demo")


@pytest.fixture
def three_seeds(build: Builder) -> Study:
    """Five rates and three seeds, all to the horizon; the highest becomes non-finite."""
    return build(
        dict.fromkeys((1e-4, 3e-4, 1e-3, 0.1, 10.0), 500), "three", seeds=(0, 1, 2), steps=500
    )


@pytest.fixture
def unfinished(build: Builder) -> Study:
    """One rate done, one on its way, one not begun."""
    return build(dict.fromkeys((1e-4, 1e-3, 0.5), 1000), "unfinished", reached={1e-4: 300, 0.5: 0})


@pytest.fixture
def all_failed(build: Builder) -> Study:
    return build({0.1: 1000, 0.5: 1000, 10.0: 1000}, "failed")


@pytest.fixture
def no_metric(build: Builder) -> Study:
    """A regression given in Python, with SGD: no metric, no test set, no named reference."""
    chance = Chance(CHANCE, "initial loss")
    problem = facts("line", metric=False, chance=chance)
    return build(
        dict.fromkeys((1e-4, 1e-3, 0.1, 10.0), 400),
        "plain",
        problem=problem,
        reference=None,
        metric=False,
        test=False,
        steps=400,
        optimizer="sgd",
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, once for all tests of pages."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()
