"""What a batch holds: its tensors, the device they are on, and how many examples they are.

A batch is whatever the user's loss takes: tensors in tuples, lists and mappings of any class, in
named tuples, dataclasses and objects with attributes, one inside the other. It keeps its type, and
what holds no tensor is never touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from types import FunctionType, MemberDescriptorType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

Batch = Any

LABELS = ("labels", "label", "targets", "target", "y")  # names under which targets are one each
_LEAVES = (str, bytes, bytearray, memoryview, range, int, float, complex, np.ndarray, np.generic)
_CLOSED = (type, FunctionType, ModuleType, nn.Module)  # objects that are no data


def tensors_of(batch: Batch) -> Iterator[torch.Tensor]:
    """Every tensor in a batch, depth first.

    >>> [t.shape[0] for t in tensors_of({"x": torch.zeros(2), "more": [torch.zeros(3), "a"]})]
    [2, 3]
    """
    return _tensors(batch, set())


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
        return
    children = _children(value)
    if children is None or id(value) in seen:
        return
    seen.add(id(value))
    for child in children:
        yield from _tensors(child, seen)


def _children(value: Any) -> list[Any] | None:
    """What a container or an object holds; None for what is neither."""
    if value is None or isinstance(value, (torch.Tensor, *_LEAVES)):
        return None
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, Sequence):
        return list(value)
    attributes = attributes_of(value)
    return list(attributes.values()) if attributes else None


def attributes_of(value: Any) -> dict[str, Any]:
    """The attributes of an object of a class with a `__dict__` or with slots."""
    if isinstance(value, _CLOSED) or type(value).__module__ == "builtins":
        return {}
    slots = {
        name: getattr(value, name)
        for kind in type(value).__mro__
        for name, member in vars(kind).items()
        if isinstance(member, MemberDescriptorType) and hasattr(value, name)
    }
    return {**slots, **getattr(value, "__dict__", {})}


# The device ----------------------------------------------------------------------------------


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with every tensor in it on `device`, in containers and objects of the same types.

    On the CPU it is the batch itself; elsewhere what is already there, or holds no tensor, is.
    What has a `to` of its own is moved by it. The user's containers are copied, never changed.
    """
    return batch if device.type == "cpu" else _moved(batch, device, {})


def _moved(value: Any, device: torch.device, known: dict[int, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)  # itself where it is there already
    children = _children(value)
    if id(value) in known or (children is None and not hasattr(value, "to")):
        return known.get(id(value), value)
    known[id(value)] = value  # what refers back to it, and no copy that is not finished
    if callable(getattr(value, "to", None)) and not isinstance(value, nn.Module):
        known[id(value)] = _moved_by_itself(value, device)
    else:
        moved = [_moved(child, device, known) for child in children or ()]
        if any(new is not old for new, old in zip(moved, children or (), strict=True)):
            known[id(value)] = _with_children(value, moved)
    return known[id(value)]


def _moved_by_itself(value: Any, device: torch.device) -> Any:
    inside = list(tensors_of(value))
    if inside and all(_is_there(tensor, device) for tensor in inside):
        return value
    moved = value.to(device)
    return value if moved is None else moved  # some change themselves and return nothing


def _is_there(tensor: torch.Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def _with_children(value: Any, children: list[Any]) -> Any:
    """A copy of a container or object that holds `children` in the place of its own."""
    if isinstance(value, Mapping):
        pairs = dict(zip(value, children, strict=True))
        if type(value) is dict or not isinstance(value, MutableMapping):
            return type(value)(pairs)  # type: ignore[call-arg]
        made = copy.copy(value)
        for key, child in pairs.items():
            made[key] = child
        return made
    if isinstance(value, tuple):
        make = getattr(value, "_make", type(value))  # named tuples take their fields one by one
        return make(children)
    made = copy.copy(value)
    if isinstance(value, Sequence):
        for place, child in enumerate(children):
            made[place] = child
        return made
    for name, child in zip(attributes_of(value), children, strict=True):
        object.__setattr__(made, name, child)  # also of a frozen dataclass
    return made


# The number of examples ----------------------------------------------------------------------


def examples_in(batch: Batch) -> int | None:
    """How many examples a batch holds, where its parts agree on it; None where they do not.

    Tensors and arrays count along their first axis, lists of tensors also by their length. Where
    parts disagree (nodes and graphs, sequence-first inputs and their targets), a part called
    `labels`, `targets` or `y` is believed. What has no part that could tell is one example.

    >>> examples_in((torch.zeros(5, 2), torch.zeros(5)))
    5
    >>> examples_in((torch.zeros(5, 2), torch.zeros(3))) is None
    True
    >>> examples_in({"nodes": torch.zeros(5, 2), "y": torch.zeros(3)})
    3
    """
    lengths: set[int] = set()
    counts = _counts(batch, lengths, set(), top=True)
    if counts is None:
        return lengths.pop() if len(lengths) == 1 else 1
    if len(counts) > 1 and len(counts & lengths) == 1:
        counts &= lengths
    if len(counts) == 1:
        return counts.pop()
    named = batch if isinstance(batch, Mapping) else attributes_of(batch)
    targets = next((named[name] for name in LABELS if named.get(name) is not None), None)
    told = None if targets is None else _counts(targets, set(), set(), top=False)
    return told.pop() if told is not None and len(told) == 1 else None


def _counts(value: Any, lengths: set[int], seen: set[int], *, top: bool) -> set[int] | None:
    """The numbers of examples that fit all parts of `value`; None where no part says anything.

    The lengths of lists of plain values, which may be names or may be a size, go to `lengths`;
    the containers on the way go to `seen`.
    """
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return {len(value)} if value.ndim else None
    if isinstance(value, PackedSequence):
        return {int(value.batch_sizes[0])}
    children = None if id(value) in seen else _children(value)
    if children is None:
        return None
    seen.add(id(value))
    told = [_counts(child, lengths, seen, top=False) for child in children]
    sets = [counts for counts in told if counts is not None]
    agreed = set.intersection(*sets) if sets else set()
    if isinstance(value, Sequence):
        if not sets:
            lengths.add(len(value))
        elif isinstance(value, list) and not top:
            agreed.add(len(value))
    return agreed if sets else None
