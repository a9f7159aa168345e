"""Drawings of a computation graph: an interactive page, pictures, DOT text, TensorBoard."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etascope.caller import left_as_it_was
from etascope.errors import StudyError, UsageError
from etascope.files import write_atomically
from etascope.inspection.graph import Graph, count_of, flops_of, parameters_of, to_json
from etascope.inspection.words import flops_text
from etascope.reporting.page import TEMPLATES, VENDOR, Part, embedded, environment, script

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from etascope.problems.problem import Problem

SUFFIXES = (".html", ".svg", ".png", ".dot")
DOTS = 144  # per inch of a PNG file


@left_as_it_was()
def graph(
    subject: Problem | nn.Module,
    inputs: Any = None,
    *,
    optimizer: str | Callable[[nn.Module, float], Optimizer] = "adam",
    out: str | os.PathLike[str] | None = None,
) -> Graph:
    """The computation graph of a problem's training step, or of a module's forward pass.

    Args:
        subject: a Problem, or any nn.Module. Neither it nor any random state is changed.
        inputs: what a module is run on: a tensor, a tuple of them, or a mapping of names.
        optimizer: of a problem's training step: a registered name, or a factory.
        out: also draw it into this file, .html, .svg, .png or .dot.

    Returns:
        The graph: `nodes` in order of execution, and the `groups` they stand in.

    Raises:
        UsageError: if it cannot be captured or drawn.
        StudyError: if the file cannot be written.

    Example:
        >>> import torch, etascope as es
        >>> es.graph(torch.nn.Linear(3, 2), torch.zeros(5, 3)).nodes[1].flops
        60
    """
    from etascope.inspection.capture import capture, capture_problem
    from etascope.problems.problem import Problem

    if out is not None:
        check_suffix(Path(out))
    if isinstance(subject, Problem):
        if inputs is not None:
            raise UsageError("a Problem brings its own inputs; leave inputs out")
        found = capture_problem(subject, optimizer)
    else:
        found = capture(subject, inputs)
    if out is not None:
        write_graph(found, out)
    return found


def write_graph(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """Draw a graph into a file; its suffix says how.

    `.html` is interactive and works offline, `.svg` and `.png` show every group open, `.dot` is
    text for Graphviz.

    Returns:
        The path of the file; it is replaced as a whole or not at all.

    Raises:
        UsageError: for another suffix, or if what draws pictures is not installed.
        StudyError: if the file cannot be written.
    """
    from etascope.inspection.dot import to_dot

    target = Path(path)
    suffix = check_suffix(target)
    if suffix == ".html":
        content = render_graph(graph).encode()
    elif suffix == ".dot":
        content = to_dot(graph).encode()
    else:
        content = _pictured(to_dot(graph), suffix.removeprefix("."))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
    except OSError as error:
        raise StudyError(
            f"cannot write the graph to {target}: {error.strerror or error}; name another file"
        ) from error
    return target


def render_graph(graph: Graph) -> str:
    """The interactive page as text."""
    from markupsafe import Markup

    scripts = graph_scripts()
    return (
        environment()
        .get_template("graph.html")
        .render(
            **panel(graph, wheel="zoom"),
            summary=summary(graph),
            scripts=[Markup(part.text) for part in scripts],
            allowed=" ".join(part.allowed for part in scripts),
        )
    )


def graph_scripts() -> list[Part]:
    """What a page that holds a graph runs."""
    templates = (
        TEMPLATES / name for name in ("graph_layout.js", "graph_view.js", "graph_events.js")
    )
    return [script(path) for path in (VENDOR / "dagre.min.js", *templates)]


def panel(graph: Graph, *, wheel: str) -> dict[str, Any]:
    """What the template of the graph's panel takes."""
    from markupsafe import Markup

    return {
        "graph": graph,
        "graph_data": Markup(embedded(to_json(graph))),
        "graph_text": as_text(graph),
        "graph_wheel": wheel,
    }


def as_text(graph: Graph) -> str:
    """The tree that a terminal shows, without colours."""
    from etascope.inspection.tree import to_tree
    from etascope.reporting.console import Terminal

    console = Terminal(width=240, color_system=None)
    with console.capture() as captured:
        console.print(to_tree(graph))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def summary(graph: Graph) -> str:
    """How large it is, in one line."""
    parts = [f"{len(graph.nodes):,} nodes in {len(graph.groups):,} groups"]
    if held := count_of(parameters_of(graph.nodes)):
        parts.append(f"{held:,} parameters")
    if flops := flops_of(graph.nodes):
        parts.append(flops_text(flops))
    return " · ".join(parts)


def check_suffix(path: Path) -> str:
    """The suffix of a file that a graph can be drawn into; raises UsageError for another."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"a graph cannot be drawn as {path.name!r}; end the name in {', '.join(SUFFIXES)}"
        )
    return suffix


def _pictured(dot: str, kind: str) -> bytes:
    """What Graphviz makes of DOT text; its pure port brings fonts and needs no system library."""
    beside = Path(sys.executable).parent
    program = shutil.which("graphviz-pure", path=str(beside)) or shutil.which("graphviz-pure")
    if program is None:
        raise UsageError(
            f"a {kind.upper()} file of a graph needs graphviz-pure; "
            "install it with: pip install 'etascope[graph]'"
        )
    command = [program, f"-T{kind}", *([f"-Gdpi={DOTS}"] if kind == "png" else [])]
    done = subprocess.run(command, input=dot.encode(), capture_output=True, check=False)
    if done.returncode != 0 or not done.stdout:
        words = " ".join(done.stderr.decode(errors="replace").split())[:300]
        raise StudyError(f"graphviz-pure could not draw the graph: {words}; try .html or .dot")
    return done.stdout
