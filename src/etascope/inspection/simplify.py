"""Makes a recorded graph easier to read: a module that ran one function is that node."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from etascope.inspection.graph import Edge, Graph, Group, Node, parameters_of, parent


def dissolved(
    name: str, nodes: Collection[Node], kinds: Mapping[str, str], leaves: Collection[str]
) -> Graph:
    """The graph, with every group in `leaves` that holds one node replaced by that node.

    The node takes the group's name, or that of its function where the group has but a number.
    """
    held: dict[str, int] = {}  # how many nodes a group holds; outer groups come before inner ones
    for node in nodes:
        for end, letter in enumerate(node.name):
            if letter == "/":
                held[node.name[:end]] = held.get(node.name[:end], 0) + 1
    alone = {group for group in leaves if held.get(group) == 1}
    taken = {node.name for node in nodes} | (set(held) - alone)
    renamed: dict[str, str] = {}
    for node in nodes:
        group = parent(node.name)
        if group in alone:
            own = group.rpartition("/")[2]
            stem = "/".join(filter(None, (parent(group), node.op if own.isdigit() else own)))
            renamed[node.name] = unique(stem, taken)
            taken.add(renamed[node.name])
    kept = tuple(_renamed(node, renamed) for node in nodes)
    groups = (
        Group(group, kinds[group], parameters_of(n for n in kept if n.name.startswith(f"{group}/")))
        for group in held
        if group not in alone
    )
    return Graph(name, kept, tuple(groups))


def unique(stem: str, taken: Collection[str]) -> str:
    """The name, or the first of `stem_1`, `stem_2`, ... that is not taken."""
    name, count = stem, 0
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    return name


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    inputs = tuple(Edge(names.get(e.source, e.source), e.tensor) for e in node.inputs)
    return replace(node, name=names.get(node.name, node.name), inputs=inputs)
