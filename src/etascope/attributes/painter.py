"""From an object to its portrait.

`["same", n, ...]` is the n-th object of the album and what it holds, `["new", n, ...]` one that was
made since, `["again", n]` that one met once more, `["known", name]` a parameter, buffer or module;
what is neither data nor known is a stranger, and no part of a portrait.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable
from enum import Enum
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from etascope.attributes.album import (
    BASES,
    SCALARS,
    TYPES,
    Album,
    Leaf,
    Portrait,
    class_name,
    is_plain_class,
)
from etascope.randomness import generator_state, is_generator
from etascope.reach import HOOKS, attributes_of, is_foreign, is_ours
from etascope.tensors import dense_parts

MOST_PARTS = 20_000  # of one attribute; what holds more holds data, and is known by identity
LONG = 100  # numbers in a list above which they are kept as one tensor


class Painter:
    """Paints portraits of values that stand together, each object once.

    Args:
        album: what is known.
        leaf: what stands for a tensor.
        first: whether the trial has just been built, so that what is met is entered.

    Attributes:
        strangers: whether something was met that is neither data nor known.
    """

    def __init__(self, album: Album, leaf: Leaf, *, first: bool = False) -> None:
        self._album, self._leaf, self._first = album, leaf, first
        self._met: dict[int, tuple[int, Any]] = {}
        self._parts = 0
        self.strangers = False

    def paint(self, value: Any) -> Portrait:
        """The portrait of a value."""
        if type(value) in SCALARS:
            return value
        word = self._word(value)
        if word is not None:
            return word
        number = self._album.numbers.get(id(value))
        if number is None and self._first:
            number = self._album.enter(value)
        if id(value) in self._met:
            return ["again", self._met[id(value)][0]] if number is None else ["same", number]
        place = len(self._met)
        self._met[id(value)] = place, value  # held, or its identity might be given out again
        self._parts += 1
        content = self._content(value) if self._parts < MOST_PARTS else None
        if number is not None:
            return ["same", number, *(content or ())]
        if content is None or not self._can_be_made(value, content):
            self.strangers = True
            return ["stranger", place]
        return ["new", place, *content]

    def _word(self, value: Any) -> list[Any] | None:
        """The portrait of what is known by a name or is immutable."""
        name = self._album.names.get(id(value))
        if name is not None:
            return ["known", name]
        if isinstance(value, (torch.dtype, torch.device)):
            return [type(value).__name__, str(value).removeprefix("torch.")]
        if type(value) is bytes:
            return ["bytes", value.decode("latin-1")]
        if type(value) is complex:
            return ["complex", value.real, value.imag]
        kind: Any = value
        if isinstance(value, type) and self._album.classes.get(class_name(kind)) is value:
            return ["type", class_name(kind)]
        return None

    def _can_be_made(self, value: Any, content: list[Any]) -> bool:
        if content[0] == "array":
            return value.dtype.fields is None
        return content[0] in ("tensor", "generator") or (
            content[0] != "cells" and content[1] in self._album.classes
        )

    def _content(self, value: Any) -> list[Any] | None:
        """What is in an object: its kind, its class and its parts; None where nothing is seen."""
        if id(value) in self._album.outside:
            return None
        if is_ours(type(value).__module__) and not isinstance(value, (nn.Module, Optimizer)):
            return None  # what makes and copies models here is no part of a trial
        for kinds, content in _CONTENTS:
            if isinstance(value, kinds):
                return content(self, value)
        if is_generator(value):
            return ["generator", *map(self.paint, generator_state(value))]
        if isinstance(value, type) or not is_plain_class(type(value)):
            return None
        return ["object", class_name(type(value)), self._attributes(value)]

    def _of_tensor(self, value: torch.Tensor) -> list[Any] | None:
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            return None
        if type(value) not in (torch.Tensor, nn.Parameter, nn.Buffer):
            return None
        leaf = value.requires_grad and value.is_leaf  # what led to the others ends with a pause
        parameter = isinstance(value, nn.Parameter)
        return ["tensor", parameter, leaf, self._leaf(value), str(value.device)]

    def _of_array(self, value: np.ndarray[Any, Any]) -> list[Any] | None:
        if value.dtype.hasobject or type(value) is not np.ndarray:
            return None
        raw = torch.from_numpy(np.array(value, order="C").reshape(-1).view(np.uint8))
        return ["array", value.dtype.str, list(value.shape), self._leaf(raw)]

    def _of_number(self, value: np.generic) -> list[Any]:
        raw = torch.tensor([*value.tobytes()], dtype=torch.uint8)
        return ["array", value.dtype.str, None, self._leaf(raw)]

    def _of_enum(self, value: Enum) -> list[Any]:
        return ["enum", class_name(type(value)), value.name]

    def _of_function(self, value: FunctionType) -> list[Any] | None:
        if not value.__closure__ or is_foreign(value.__module__ or ""):
            return None
        return ["cells", *map(self._of_cell, value.__closure__)]

    def _of_cell(self, cell: Any) -> Portrait:
        try:
            return self.paint(cell.cell_contents)
        except ValueError:  # a variable that has no value yet
            return ["empty"]

    def _of_method(self, value: MethodType) -> list[Any]:
        return ["cells", self.paint(value.__self__)]

    def _of_partial(self, value: partial[Any]) -> list[Any]:
        return ["cells", *map(self.paint, (value.func, *value.args, *value.keywords.values()))]

    def _of_container(self, value: Any) -> list[Any]:
        kind = class_name(type(value))
        own = [] if type(value) in TYPES.values() else self._attributes(value)
        if isinstance(value, dict):
            made_by = self.paint(value.default_factory) if isinstance(value, defaultdict) else None
            pairs = [[self.paint(k), self.paint(v)] for k, v in list(dict.items(value))]
            return ["dict", kind, made_by, pairs, own]
        if isinstance(value, (set, frozenset)):
            return ["set", kind, None, sorted(map(self.paint, value), key=repr), own]
        most = value.maxlen if isinstance(value, deque) else None
        numbers = _numbers(value)
        if numbers is not None:
            return ["numbers", kind, most, self._leaf(numbers), own]
        return ["list", kind, most, [self.paint(item) for item in value], own]

    def _attributes(self, value: Any) -> list[Any]:
        hidden = HOOKS if isinstance(value, nn.Module) else ()
        held = attributes_of(value).items()
        return [[key, self.paint(item)] for key, item in held if key not in hidden]


_CONTENTS: tuple[tuple[Any, Callable[[Painter, Any], list[Any] | None]], ...] = (
    (torch.Tensor, Painter._of_tensor),
    (np.ndarray, Painter._of_array),
    (np.generic, Painter._of_number),
    (Enum, Painter._of_enum),
    (FunctionType, Painter._of_function),
    (MethodType, Painter._of_method),
    (partial, Painter._of_partial),
    (BASES, Painter._of_container),
)


def digest(tensor: torch.Tensor) -> str:
    """A tensor's kind and content in a few characters."""
    found = hashlib.blake2b(digest_size=16)
    for part in dense_parts(tensor):
        plain = part.cpu().resolve_conj().resolve_neg().contiguous()
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return f"{tensor.dtype}{tuple(tensor.shape)}{found.hexdigest()}"


def _numbers(value: Any) -> torch.Tensor | None:
    """A long list of nothing but floats, or of nothing but small ints, as a tensor."""
    if len(value) < LONG or type(value[0]) not in (int, float):
        return None
    kinds = set(map(type, value))
    if kinds == {float}:
        return torch.tensor([*value], dtype=torch.float64)
    if kinds == {int} and max(map(abs, value)) < 2**62:
        return torch.tensor([*value], dtype=torch.int64)
    return None
