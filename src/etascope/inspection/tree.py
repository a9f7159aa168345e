"""The graph as a tree for the terminal."""

from __future__ import annotations

from rich.text import Text
from rich.tree import Tree

from etascope.inspection.graph import (
    Graph,
    Group,
    Node,
    count_of,
    flops_of,
    inside,
    parameters_of,
    parent,
)
from etascope.inspection.words import flops_text, shape_text


def to_tree(graph: Graph) -> Tree:
    """Return nodes and groups in order of execution, with shapes, parameters and FLOPs."""
    total = count_of(parameters_of(graph.nodes))
    title = Text(graph.name, style="bold")
    title.append(_counts(total, flops_of(graph.nodes)), style="dim")
    root = Tree(title)
    branches = {"": root}
    groups = {group.name: group for group in graph.groups}
    for node in graph.nodes:
        _branch(graph, groups, branches, parent(node.name)).add(_of_node(node))
    return root


def _branch(graph: Graph, groups: dict[str, Group], branches: dict[str, Tree], name: str) -> Tree:
    """The branch of a group, made where its first node comes."""
    if name not in branches:
        outer = _branch(graph, groups, branches, parent(name))
        group = groups[name]
        text = Text(name.rpartition("/")[2], style="bold cyan")
        text.append(f"  {group.kind}", style="cyan")
        counts = _counts(count_of(group.parameters), flops_of(inside(graph, name)))
        branches[name] = outer.add(text.append(counts, style="dim"))
    return branches[name]


def _of_node(node: Node) -> Text:
    own = node.name.rpartition("/")[2]
    text = Text(own)
    if node.op != own:
        text.append(f"  {node.op}", style="dim")
    if node.outputs:
        more = f" and {len(node.outputs) - 1} more" if len(node.outputs) > 1 else ""
        text.append(f"  {shape_text(node.outputs[0])}{more}", style="green")
    text.append(_counts(count_of(node.parameters), node.flops), style="dim")
    if node.parameters:
        text.append("  " + ", ".join(p.name for p in node.parameters), style="dim italic")
    if node.note:
        text.append(f"  {node.note}", style="yellow")
    return text


def _counts(parameters: int, flops: int) -> str:
    words = [f"{parameters:,} parameters"] if parameters else []
    words += [flops_text(flops)] if flops else []
    return "  " + ", ".join(words) if words else ""
