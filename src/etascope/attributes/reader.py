"""From portraits back to objects.

Objects of the album are filled in place; none of another class than theirs, or than a container's
of Python's own, is ever made, so that reading a state runs no code.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from enum import EnumMeta
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

from etascope.attributes.album import BASES, TYPES, Album, Portrait, is_plain_class
from etascope.randomness import generator_from, give_back
from etascope.reach import HOOKS, attributes_of


class Reader:
    """Makes objects what they are in portraits that were painted of the same trial."""

    def __init__(self, album: Album) -> None:
        self._album = album
        self._made: dict[int, Any] = {}

    def read(self, portrait: Portrait) -> Any:
        """The object of a portrait.

        Raises:
            KeyError, IndexError, TypeError, ValueError: if it is no portrait of such a trial.
        """
        if type(portrait) is not list:
            return portrait
        tag, place, *content = portrait
        if tag in _ATOMS:
            return _ATOMS[tag](place, *content)
        named: dict[str, Any] = {
            "type": self._album.classes,
            "known": self._album.known,
            "again": self._made,
        }
        if tag in named:
            return named[tag][place]
        if tag == "new":
            return self._make(place, *content)
        if tag != "same":
            raise ValueError(f"a portrait holds {tag!r}")
        live = self._album.objects[place]
        return self._fill(live, *content) if content else live

    def _fill(self, live: Any, kind: str, *parts: Any) -> Any:
        """Make an object that is there what its portrait holds; tuples and the like are kept."""
        if kind == "tensor":
            if isinstance(parts[2], torch.Tensor):  # none was kept where nothing changes it
                _fill_tensor(live, parts[2])
            return live
        if kind == "array":
            if parts[1] is not None and live.nbytes:
                live[...] = _array(parts[2], live.dtype, parts[1])
        elif kind == "generator":
            give_back(live, self.read(parts[1]))
        elif kind == "cells":
            self._fill_cells(live, parts)
        elif kind == "object":
            self._fill_attributes(live, parts[1])
        elif kind in ("list", "dict", "set", "numbers"):
            self._fill_container(live, kind, parts[2])
            self._fill_attributes(live, parts[3])
        return live

    def _fill_cells(self, live: Any, parts: Any) -> None:
        cells: Any = live.__closure__ if isinstance(live, FunctionType) else [None] * len(parts)
        for cell, part in zip(cells, parts, strict=True):
            value = None if part == ["empty"] else self.read(part)
            if cell is not None and part != ["empty"]:
                cell.cell_contents = value

    def _fill_container(self, live: Any, kind: str, parts: Any) -> None:
        if kind == "dict":
            pairs = [(self.read(k), self.read(v)) for k, v in parts]
            dict.clear(live)
            dict.update(live, pairs)
            return
        items = list(self._items(kind, parts))
        bases: tuple[tuple[Any, Any], ...] = (
            (list, list.extend),
            (deque, deque.extend),
            (set, set.update),
        )
        for base, add in bases:
            if isinstance(live, base):
                base.clear(live)
                add(live, items)

    def _items(self, kind: str, parts: Any) -> Iterator[Any]:
        yield from parts.tolist() if kind == "numbers" else map(self.read, parts)

    def _fill_attributes(self, live: Any, pairs: Any) -> None:
        held = attributes_of(live)
        hidden = HOOKS if isinstance(live, nn.Module) else ()
        for key in held.keys() - {key for key, _ in pairs} - set(hidden):
            object.__delattr__(live, key)
        for key, part in pairs:
            value = self.read(part)
            if held.get(key, self) is not value:
                object.__setattr__(live, key, value)

    def _make(self, place: int, kind: str, *parts: Any) -> Any:
        if kind == "tensor":
            is_parameter, requires_grad, data, device = parts
            made = data.to(device, copy=True).requires_grad_(requires_grad)
            made = nn.Parameter(made.detach(), requires_grad) if is_parameter else made
            return self._keep(place, made)
        if kind == "array":
            array = _array(parts[2], np.dtype(parts[0]), parts[1] or [])
            return self._keep(place, array.copy() if parts[1] is not None else array[()])
        if kind == "generator":
            return self._keep(place, generator_from(*map(self.read, parts)))
        cls = self._album.classes[parts[0]]
        if kind == "enum" and isinstance(cls, EnumMeta):
            return self._keep(place, cls[parts[1]])
        if kind == "object" and is_plain_class(cls):
            made = self._keep(place, object.__new__(cls))
            self._fill_attributes(made, parts[1])
            return made
        return self._make_container(place, kind, cls, parts[1:])

    def _make_container(self, place: int, kind: str, cls: Any, content: Any) -> Any:
        option, parts, own = content
        base = next((base for base in BASES if issubclass(cls, base)), None)
        if base is None:
            raise ValueError(f"a portrait makes a {cls.__name__} of a {kind}")
        if base in (tuple, frozenset):
            items = list(self._items(kind, parts))
            made = cls(items) if cls in TYPES.values() else base.__new__(cls, items)
            return self._keep(place, made)
        made = self._keep(place, base.__new__(cls))
        if isinstance(made, deque):
            deque.__init__(made, maxlen=option)
        if isinstance(made, defaultdict):
            made.default_factory = self.read(option)
        self._fill_container(made, kind, parts)
        self._fill_attributes(made, own)
        return made

    def _keep(self, place: int, made: Any) -> Any:
        self._made[place] = made
        return made


def _fill_tensor(live: torch.Tensor, data: torch.Tensor) -> None:
    """Copies in place, so that views of the same memory go on being views."""
    with torch.no_grad():
        if live.shape == data.shape and live.dtype == data.dtype:
            try:
                live.data.copy_(data)
                return
            except RuntimeError:  # several of its numbers are one in memory
                pass
        live.data = data.to(live.device, copy=True)


def _array(data: torch.Tensor, dtype: Any, shape: list[int]) -> Any:
    return np.frombuffer(data.to(torch.uint8).numpy().tobytes(), dtype).reshape(shape)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"torch has no number type {name!r}")
    return found


_ATOMS: dict[str, Callable[..., Any]] = {
    "dtype": _dtype,
    "device": torch.device,
    "bytes": lambda text: text.encode("latin-1"),
    "complex": complex,
}
