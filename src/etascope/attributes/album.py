"""What portraits refer to: the objects that were there, what has a name, and the classes known."""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

Portrait = Any  # nested lists of plain values and tensors, which a state can hold
Leaf = Callable[[torch.Tensor], Any]  # what stands for a tensor in a portrait

SCALARS = frozenset({type(None), bool, int, float, str})
BASES = (list, tuple, deque, set, frozenset, dict)
TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(list, tuple, set, frozenset, deque, dict, OrderedDict, defaultdict, Counter),
        *(torch.Size, SimpleNamespace, bool, int, float, str),
    )
}
HEAP_TYPE = 1 << 9  # the flag of classes that were written in Python


class Album:
    """The objects that a trial was built with, by number, and what is known by name.

    A trial that is built again has the same objects in the same order, so a number finds them
    there. They are filled in place, so that whatever else refers to them goes on seeing them.

    Args:
        known: tensors and modules that are no part of a portrait, by the name that stands for them.
        classes: those of which an object may be made, by `class_name`.
        outside: objects that are not the trial's own, by identity; they are left alone.
    """

    def __init__(
        self, known: Mapping[str, Any], classes: Mapping[str, type], outside: Mapping[int, Any]
    ) -> None:
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.classes = {**classes, **TYPES}
        self.outside = outside
        self.recall(known)

    def recall(self, known: Mapping[str, Any]) -> None:
        """Take down anew which tensors and modules are known by which name."""
        self.known = dict(known)
        self.names = {id(value): name for name, value in reversed(self.known.items())}

    def enter(self, value: Any) -> int:
        """The number of an object that a trial was built with."""
        number = self.numbers[id(value)] = len(self.objects)
        self.objects.append(value)
        kind = type(value)
        self.classes.setdefault(class_name(kind), kind)
        return number


def class_name(kind: type) -> str:
    """The name that a portrait knows a class by."""
    return kind.__name__ if kind in TYPES.values() else f"{kind.__module__}.{kind.__qualname__}"


def is_plain_class(kind: type) -> bool:
    """Whether its objects are no more than their attributes: Python's, and no library's machine."""
    if not all(cls.__flags__ & HEAP_TYPE for cls in kind.__mro__[:-1]):
        return False  # it, or a class that it builds upon, is written in C
    if issubclass(kind, (nn.Module, Optimizer)) or kind.__name__ in (
        "SimpleNamespace",
        "Namespace",
    ):
        return True
    if kind.__module__.startswith(("torch.distributions.", "torch.utils.data.")):
        return True
    top = kind.__module__.partition(".")[0]
    return top not in sys.stdlib_module_names and top not in ("torch", "numpy")
