"""The page in a real browser: drawn, quiet, asking nobody, in both themes and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from reporting.pages import in_chromium
from reporting.written_studies import DEMO, facts, write_study

from etascope.reporting.html import report

pytestmark = in_chromium
FIGURES = ["response-loss", "response-metric", "pair-high", "pair-low", "curves", "schedule"]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return report(write_study(folder / "demo", DEMO), folder / "report.html")


class Visit:
    """A page that was opened, with all that it said and asked for."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, **options: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.add_init_script(
            "document.addEventListener('securitypolicyviolation',"
            " (event) => console.error('CSP: ' + event.violatedDirective))"
        )
        self.page.goto(file.as_uri())

    def wait_drawn(self, scheme: str) -> None:
        self.page.wait_for_selector(f"html[data-drawn='{scheme}']", timeout=20_000)

    def colour(self, selector: str, name: str) -> str:
        script = f"element => getComputedStyle(element).{name}"
        return str(self.page.eval_on_selector(selector, script))

    def overflow(self) -> int:
        script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.page.evaluate(script))


@pytest.fixture
def visit(browser: Any, page_file: Path) -> Iterator[Any]:
    opened: list[Visit] = []

    def open_page(file: Path = page_file, **options: Any) -> Visit:
        opened.append(Visit(browser, file, **options))
        return opened[-1]

    yield open_page
    for each in opened:
        each.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_in_silence(visit: Any, page_file: Path, scheme: str) -> None:
    seen = visit(color_scheme=scheme)
    seen.wait_drawn(scheme)
    for name in FIGURES:
        plot = seen.page.locator(f"#plot-{name}")
        assert plot.locator("svg.main-svg").first.bounding_box()["height"] > 150
        assert plot.locator(".scatterlayer .trace").count() > 0
    assert seen.said == []
    assert seen.asked == [page_file.as_uri()]
    ground = seen.colour("body", "backgroundColor")
    assert ground == ("rgb(253, 253, 251)" if scheme == "light" else "rgb(18, 20, 23)")


def test_figures_follow_a_change_of_theme(visit: Any) -> None:
    seen = visit(color_scheme="light")
    seen.wait_drawn("light")
    tick = "#plot-curves .xtick text"
    before = seen.colour(tick, "fill")
    seen.page.emulate_media(color_scheme="dark")
    seen.wait_drawn("dark")
    assert seen.colour(tick, "fill") != before
    assert seen.said == []


def test_no_colour_of_the_page_is_left_unresolved(visit: Any) -> None:
    seen = visit()
    seen.wait_drawn("light")
    assert "var(--" not in seen.page.eval_on_selector("#plot-response-loss", "e => e.innerHTML")


@pytest.mark.parametrize("width", [360, 768])
def test_a_phone_scrolls_down_only(visit: Any, width: int) -> None:
    seen = visit(width=width, has_touch=True, is_mobile=True, device_scale_factor=2)
    seen.wait_drawn("light")
    assert seen.overflow() == 0
    for name in FIGURES:
        box = seen.page.locator(f"#plot-{name} svg.main-svg").first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    assert seen.page.eval_on_selector(".scroll", "e => e.scrollWidth <= e.clientWidth")


def test_on_a_phone_the_reason_stands_below_its_row(visit: Any) -> None:
    for width, stacked in ((360, True), (1280, False)):
        seen = visit(width=width)
        seen.wait_drawn("light")
        for row in seen.page.locator("tbody tr").all():
            verdict, why = (row.locator(cell).bounding_box() for cell in (".v", ".why"))
            assert (why["y"] >= verdict["y"] + verdict["height"]) is stacked
            assert why["width"] >= 240


@pytest.mark.parametrize("width", [360, 1280])
def test_names_beside_the_curves_do_not_overlap(visit: Any, width: int) -> None:
    seen = visit(width=width)
    seen.wait_drawn("light")
    names = seen.page.locator("#plot-curves .scatterlayer .text text").all()
    boxes = sorted((name.bounding_box() for name in names), key=lambda box: box["y"])
    assert len(boxes) == len(DEMO)
    for upper, lower in pairwise(boxes):
        assert upper["y"] + upper["height"] <= lower["y"] + 3  # a line's box is taller than its ink
    assert all(box["x"] + box["width"] <= width for box in boxes)


def test_print_is_light_and_back(visit: Any) -> None:
    seen = visit(color_scheme="dark")
    seen.wait_drawn("dark")
    seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    seen.wait_drawn("light")
    seen.page.evaluate("dispatchEvent(new Event('afterprint'))")
    seen.wait_drawn("dark")
    assert seen.said == []


def test_without_scripts_the_words_are_there(visit: Any) -> None:
    seen = visit(java_script_enabled=False)
    text = seen.page.inner_text("body")
    assert "Of the rates trained to the end, use 0.001." in text
    assert "Scripts are off" in text
    assert "Held-out loss against the learning rate" in text
    assert not seen.page.locator("#plot-curves").is_visible()


def test_a_script_that_is_not_the_pages_own_is_refused(visit: Any) -> None:
    seen = visit()
    seen.wait_drawn("light")
    seen.page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.foreign = 1';"
        " document.body.append(s)"
    )
    assert seen.page.evaluate("window.foreign === undefined")
    assert any("CSP" in line or "Content Security Policy" in line for line in seen.said)


@pytest.mark.parametrize("kind", ["regression", "hostile", "broken"])
def test_other_studies_are_quiet_too(visit: Any, tmp_path: Path, kind: str) -> None:
    evil = '</script><img src=x onerror="document.title=1"> <b>&'
    options: dict[str, dict[str, Any]] = {
        "regression": {"metric": False, "test": False, "optimizer": "sgd", "reference": None},
        "hostile": {"problem": replace(facts(evil), metric=evil), "reference": None},
        "broken": {},
    }
    lrs = (10.0, 20.0) if kind == "broken" else (1e-4, 1e-3, 0.1, 10.0)
    study = write_study(tmp_path / "s", dict.fromkeys(lrs, 100), steps=100, **options[kind])
    seen = visit(file=report(study, tmp_path / "a.html"))
    seen.wait_drawn("light")
    assert seen.said == []
    assert len(seen.asked) == 1
    assert seen.overflow() == 0
    assert seen.page.locator("img[src=x]").count() == 0
