"""What the commands print, and how they call what trains."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

import etascope as es
from etascope.plan import Plan
from etascope.words import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

T = TypeVar("T")


def told(call: Callable[..., T], *given: Any, **options: Any) -> T:
    """Call `es.sweep` or `es.find` and show how it goes."""
    from etascope.reporting.progress import TerminalProgress

    try:
        with TerminalProgress() as progress:
            return call(*given, progress=progress, **options)
    except KeyboardInterrupt:
        say("etascope: stopped; the same command goes on from here", err=True)
        raise typer.Exit(130) from None


def each(
    call: Callable[..., T],
    optimizers: list[str] | None,
    out: Path | None,
    problem: es.Problem,
    *given: Any,
    **options: Any,
) -> list[T]:
    """Call `es.sweep` or `es.find` for each optimizer; several go to folders of their own."""
    from etascope.optim.registry import get_optimizer

    names = list(dict.fromkeys(optimizers or [str(Plan.optimizer)]))
    for name in names:
        get_optimizer(name)  # before any of them trains
    answers = []
    for name in names:
        folder = out / name if out is not None and len(names) > 1 else out
        answers.append(told(call, problem, *given, optimizer=name, out=folder, **options))
    return answers


def print_compared(studies: list[es.Study]) -> None:
    """The table of several optimizers, and how to draw it."""
    if len(studies) < 2:
        return
    from etascope.reporting.compared import compare
    from etascope.reporting.terminal import comparison_table

    say()
    draw(comparison_table(compare(studies)))
    say()
    say(f"etascope report {shlex.join(str(study.path) for study in studies)} -o FILE.html draws it")


def print_study(study: es.Study) -> None:
    """The answer of a study and its table."""
    from etascope.reporting.terminal import summary

    draw(summary(study))


def print_place(path: str | os.PathLike[str]) -> None:
    """Where a study is, and how to draw it."""
    say()
    say(f"The study is in {path}; etascope report {shlex.quote(str(path))} draws it")


def draw(renderable: RenderableType) -> None:
    """Draw on the terminal."""
    from etascope.reporting.console import Terminal

    Terminal().print(renderable)


def say(line: object = "", *, err: bool = False) -> None:
    """Print one line, in which every character can be seen."""
    typer.echo(visible(str(line)), err=err)
