"""The graph as DOT text, which Graphviz draws: groups are clusters."""

from __future__ import annotations

import json
from collections.abc import Callable

from etascope.inspection.graph import Graph, Node, Tensor, count_of, flops_of, inside, parent
from etascope.inspection.words import flops_text, shape_text

HEADER = """digraph {name} {{
  rankdir=TB; compound=true; fontname="Helvetica"; labelloc=t; label={name};
  graph [labeljust=l];
  node [shape=box, style="rounded,filled", fillcolor="#ffffff", color="#8a8f98",
    fontname="Helvetica", fontsize=11, margin="0.12,0.05"];
  edge [color="#5f6672", fontname="Helvetica", fontsize=9, fontcolor="#5f6672", arrowsize=0.6];
"""
FILLS = ("#f4f6f9", "#e9edf3", "#dde4ed", "#d1dae6")
ENDS = {"input", "output", "constant", "buffer", "state", "target"}


def to_dot(graph: Graph) -> str:
    """Return the whole graph, every group open, as text in the DOT language.

    Example:
        >>> import torch
        >>> from etascope.inspection.capture import capture
        >>> to_dot(capture(torch.nn.ReLU(), torch.zeros(2))).splitlines()[0]
        'digraph "ReLU" {'

    Source: the DOT language, graphviz.org/doc/info/lang.html.
    """
    lines = [HEADER.format(name=_quoted(graph.name)).rstrip()]
    lines += _members(graph, "", 1)
    for node in graph.nodes:
        flows: dict[str, list[Tensor]] = {}
        for edge in node.inputs:
            flows.setdefault(edge.source, []).append(edge.tensor)
        for source, tensors in flows.items():
            ends = f"{_quoted(source)} -> {_quoted(node.name)}"
            lines.append(f"  {ends} [label={_quoted(' ' + _flow_text(tensors))}];")
    return "\n".join([*lines, "}"]) + "\n"


def _members(graph: Graph, group: str, depth: int) -> list[str]:
    """The lines of what stands in a group, itself not included."""
    pad = "  " * depth
    lines = [
        f"{pad}{_quoted(node.name)} [{_look(node)}];"
        for node in graph.nodes
        if parent(node.name) == group
    ]
    for inner in graph.groups:
        if parent(inner.name) == group:
            own = inner.name.rpartition("/")[2]
            title = f"{own}  {inner.kind}" if inner.kind != own else own
            counts = _counts(count_of(inner.parameters), flops_of(inside(graph, inner.name)))
            fill = FILLS[min(depth, len(FILLS)) - 1]
            lines += [
                f"{pad}subgraph {_quoted('cluster_' + inner.name)} {{",
                f"{pad}  label={_quoted(' · '.join([title, *counts]))};",
                f'{pad}  style="rounded,filled"; fillcolor="{fill}"; color="#b6bec9";',
                *_members(graph, inner.name, depth + 1),
                f"{pad}}}",
            ]
    return lines


def _look(node: Node) -> str:
    own = node.name.rpartition("/")[2]
    first = own if node.op in (own, *_numbered(own)) else f"{own} ({node.op})"
    lines = [first, *(shape_text(tensor) for tensor in node.outputs[:1])]
    lines += _counts(count_of(node.parameters), node.flops)
    shape = ', shape=ellipse, style="filled"' if node.op in ENDS else ""
    return f"label={_quoted(chr(10).join(lines))}{shape}"


def _numbered(own: str) -> tuple[str, ...]:
    stem, _, number = own.rpartition("_")
    return (stem,) if number.isdigit() else ()


def _counts(parameters: int, flops: int) -> list[str]:
    words: list[tuple[int, Callable[[int], str]]] = [
        (parameters, lambda count: f"{count:,} parameters"),
        (flops, flops_text),
    ]
    return [word(count) for count, word in words if count]


def _flow_text(tensors: list[Tensor]) -> str:
    if len(tensors) > 1:
        return f"{len(tensors)} tensors"
    return "×".join(map(str, tensors[0].shape)) or "scalar"


def _quoted(text: str) -> str:
    """A quoted string; JSON's escapes for quotes, backslashes and line ends are DOT's too."""
    return json.dumps(text, ensure_ascii=False)
