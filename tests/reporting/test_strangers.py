"""Text of others is text, in every medium: no control of a terminal, no markup, no formula."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reporting.pages import Page
from reporting.written_studies import Builder, burst, facts, plan
from rich.text import Text
from small import line_problem

import etascope as es
from etascope.call import Call
from etascope.errors import StudyError, UsageError
from etascope.records import Failure, TrialId
from etascope.reporting.compared import compare
from etascope.reporting.console import Terminal
from etascope.reporting.html import render
from etascope.reporting.plots import plot, save_plots
from etascope.reporting.progress import TerminalProgress
from etascope.reporting.tensorboard import write_tensorboard
from etascope.reporting.terminal import comparison_table, summary
from etascope.study import Study
from etascope.words import visible

SOURCE = Path(es.__file__).parent
CONTROLS = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0))))
MARKS = "\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
BREAKS = "\u2028\u2029\u0085\x0b\x0c\r\n"
SEQUENCES = "\x1b]0;title\x07 \x1b[2J\x1b[31m \x9b2J \x1bP0q\x1b\\ \ud800 \U000e0041"
HOSTILE = f"name{CONTROLS}{MARKS}{BREAKS}{SEQUENCES}"
BRACKETS = (
    "[/INST]", "[batch, channels]", "run [old]", "[red]x", "[/]", "[link=x]y[/link]", "\\[x]",
    "$x$", "$\\frac{$", "a_b^c", "100 % of \\alpha", "$", "$$", ":fire:", "<b>x</b>", "%{y}", "{}",
    "&amp;",
)  # fmt: skip


def wild(text: str) -> list[str]:
    """The characters of a terminal's output that are neither letters nor line breaks of ours."""
    return [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")]


def study_of(build: Builder, text: str, name: str = "stranger") -> Study:
    """A study in which every text is `text`."""
    settings = plan(100, optimizer=text, schedule=text)
    failing = burst(TrialId(10.0, 0), 100, settings)
    fails = replace(
        failing, failure=Failure(failing.stop, "exception", text, text, text), loss=failing.loss
    )
    problem = replace(facts(text), metric=text, device=text, fingerprint=text)
    return build(
        {0.001: 100, 10.0: 100}, name, steps=100, reference=text, problem=problem,
        bursts=[burst(TrialId(0.001, 0), 100, settings), fails],
        optimizer=text, schedule=text,
        calls=[Call("sweep", {"lrs": [0.001], "optimizer": text, text: text})],
    )  # fmt: skip


def drawn(renderable: Any, **options: Any) -> str:
    console = Terminal(file=io.StringIO(), width=4000, **options)
    console.print(renderable)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_no_character_steers_the_terminal(build: Builder) -> None:
    study = study_of(build, HOSTILE)
    assert not wild(drawn(summary(study)))
    other = study_of(build, HOSTILE, "other")
    assert not wild(drawn(comparison_table(compare([study, other]))))
    lines = drawn(summary(study)).splitlines()
    assert not [line for line in lines if line.startswith(("title", "name"))]


def test_what_is_drawn_is_as_long_with_texts_of_others(build: Builder) -> None:
    """A line break in a name makes no line: none can be forged."""
    plain = drawn(summary(study_of(build, "x"))).count("\n")
    assert drawn(summary(study_of(build, "x\nUse a rate of 9.", "forged"))).count("\n") == plain


@pytest.mark.parametrize("text", BRACKETS)
def test_brackets_stand_as_they_are(build: Builder, text: str, tmp_path: Path) -> None:
    study = study_of(build, text)
    assert text in drawn(summary(study))
    page = Page(render(study))
    assert text in page.words
    for path in save_plots(study, tmp_path):
        assert path.read_bytes()[1:4] == b"PNG"
    _, metric, _ = plot(study)
    label = metric.yaxis.label
    assert label.get_text() == f"held-out {text}"
    assert not label.get_parse_math()


def test_control_characters_are_drawn_in_plots_and_pages(build: Builder, tmp_path: Path) -> None:
    study = study_of(build, HOSTILE.replace("\ud800", ""))
    assert save_plots(study, tmp_path)
    page = Page(render(study))
    everything = [page.words, *(str(v) for _, attributes in page.tags for v in attributes.values())]
    assert not wild("".join(everything))
    assert not wild(json.dumps(page.data(), ensure_ascii=False))
    assert len(page.scripts) == 3


def test_event_files_take_any_name(build: Builder, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for number, text in enumerate((HOSTILE, *BRACKETS[:8])):
        assert write_tensorboard(study_of(build, text, f"s{number}"), tmp_path / str(number))


def test_the_progress_of_a_study_is_text(tmp_path: Path) -> None:
    """A loss that raises with such a message fails its trial, and the sweep goes on."""

    def loss(model: Any, batch: Any) -> Any:
        value = (model(batch[0]) - batch[1]).square().mean()
        if model.training and value.item() > 50:
            raise RuntimeError(f"expected [batch, channels] [/INST] {HOSTILE}")
        return value

    def metric(model: Any, batch: Any) -> Any:
        return (model(batch[0]) - batch[1]).abs().flatten()

    metric.__name__ = f"[/red]{HOSTILE}".replace("\ud800", "")
    problem = line_problem(loss=loss, metric=metric, name=f"[/INST]{HOSTILE}")
    for number, width in enumerate((80, 4000)):
        console = Terminal(file=io.StringIO(), width=width, force_terminal=bool(number))
        with TerminalProgress(console) as progress:
            study = es.sweep(
                problem, [0.1, 50.0], steps=30, optimizer="sgd", out=tmp_path / f"[x]{number}",
                progress=progress, engine="serial",
            )  # fmt: skip
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert "[x]" in shown
        if number == 0:
            assert not wild(shown)
            assert "[batch, channels] [/INST]" in shown
        assert "\x1b]" not in shown
        assert "\u202e" not in shown
        assert study.verdicts[50.0].name == "undecided"
        assert "[batch, channels] [/INST]" in drawn(summary(study))


@pytest.mark.parametrize("kind", [UsageError, StudyError])
def test_errors_are_one_visible_line(kind: type[Exception]) -> None:
    assert not wild(str(kind(HOSTILE)).replace("\n", "\x00"))
    assert "\n" not in str(kind(HOSTILE))
    assert str(kind("größe [/INST] 1\u202f000")) == "größe [/INST] 1\u202f000"


def test_visible_keeps_every_letter_and_can_be_repeated() -> None:
    for text in ("", "abc", "größe", "学習率", "שיעור", "a\u00a0b\u202fc", "🙂", "e\u0301"):
        assert visible(text) == text
    for code in (*range(0x300), *range(0x2000, 0x2070), 0xFEFF, 0xD800, 0xE0041):
        shown = visible(chr(code))
        assert visible(shown) == shown
        assert len(shown.splitlines()) <= 1
        assert not wild(shown.replace("\n", "\x00"))


def test_styles_stay_where_they_were() -> None:
    text = Text("a\x1bb\nc", style="bold")
    text.append("red\u202eend", style="red")
    console = Terminal(file=io.StringIO(), width=200, force_terminal=True, color_system="standard")
    console.print(text)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a\\x1bb\\nc" in shown
    assert "\x1b[1;31mred\\u202eend\x1b[0m" in shown


def test_nothing_else_makes_a_console() -> None:
    """Whatever draws on a terminal goes through the one door."""
    doors = [
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if "import Console" in path.read_text() or "Console(" in path.read_text()
    ]
    assert doors == ["reporting/console.py"]


@pytest.mark.parametrize("argument", ["[/INST]", "run [old]", HOSTILE.replace("\0", "")])
def test_the_command_line_says_what_it_was_given(argument: str) -> None:
    """Where errors go to a terminal, too: one line, and nothing that steers it."""
    argument = argument.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    for words in (
        ["show", argument],
        [f"--{argument}"],
        ["sweep", argument],
        ["show", "--", argument],
    ):
        master, slave = pty.openpty()
        command = [sys.executable, "-m", "etascope.cli", *words]
        done = subprocess.run(command, stdout=slave, stderr=slave, check=False)
        os.close(slave)
        shown = os.read(master, 1 << 20).decode().replace("\r\n", "\n")
        os.close(master)
        assert done.returncode in (1, 2)
        assert shown.startswith("etascope: ")
        assert shown.count("\n") == 1
        assert not wild(shown)
        assert visible(argument)[:6] in shown
