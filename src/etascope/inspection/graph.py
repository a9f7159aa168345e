"""The computation graph of a network: plain values, whatever drew or captured them.

Names are paths: the node `layer1/conv2d` stands in the group `layer1`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tensor:
    """What flows along an edge."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Edge:
    """A tensor that a node reads, and the node that made it."""

    source: str
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Parameter:
    """A trained tensor, by its name in `module.named_parameters()`."""

    name: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Node:
    """One function that was called on tensors."""

    name: str
    op: str
    inputs: tuple[Edge, ...] = ()
    """In the order of the call, each tensor once."""
    outputs: tuple[Tensor, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    flops: int = 0
    """A multiplication and an addition are two; counted for products and convolutions only."""
    operators: tuple[str, ...] = ()
    """The ATen operators that it ran, in order."""
    note: str = ""
    """One sentence where something could not be opened."""


@dataclass(frozen=True, slots=True)
class Group:
    """A module's call, or a part of the training step."""

    name: str
    kind: str
    """The module's class, or `loss`, `prediction`, `gradients`, `update`, `train step`."""
    parameters: tuple[Parameter, ...] = ()
    """Of all inside, each once."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in order of execution, and the groups they stand in, outer ones first."""

    name: str
    nodes: tuple[Node, ...]
    groups: tuple[Group, ...]


def parent(name: str) -> str:
    """The group that a node or group stands in; empty at the top.

    >>> parent("layer1/conv2d"), parent("layer1")
    ('layer1', '')
    """
    return name.rpartition("/")[0]


def inside(graph: Graph, group: str) -> list[Node]:
    """The nodes in a group and in the groups within it; all of them for the empty name."""
    return [node for node in graph.nodes if not group or node.name.startswith(f"{group}/")]


def flops_of(nodes: Iterable[Node]) -> int:
    """How many floating point operations nodes take together."""
    return sum(node.flops for node in nodes)


def parameters_of(nodes: Iterable[Node]) -> tuple[Parameter, ...]:
    """The parameters that nodes use, each once."""
    return tuple({p.name: p for node in nodes for p in node.parameters}.values())


def count_of(parameters: Iterable[Parameter]) -> int:
    """How many numbers parameters hold together."""
    return sum(parameter.count for parameter in parameters)


def to_json(graph: Graph) -> dict[str, Any]:
    """The graph as JSON values."""
    return asdict(graph)
