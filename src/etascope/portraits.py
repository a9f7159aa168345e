"""Portraits: what an object holds, as nested lists of plain values and tensors, and back again.

Objects that were there when a trial was built are known by a number, since a trial that is built
again has the same ones in the same order: they are filled in place, so that whatever else refers
to them goes on seeing them, and none of another class than theirs is ever made. What is neither
data nor known is no part of a portrait.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, EnumMeta
from functools import partial
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from etascope.randomness import generator_from, generator_state, give_back, is_generator
from etascope.reach import HOOKS, attributes_of, is_foreign

MOST_PARTS = 20_000  # of one attribute; what holds more holds data, and is known by identity
SCALARS = frozenset({type(None), bool, int, float, str})
TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (list, tuple, set, frozenset, deque, dict, OrderedDict, defaultdict, Counter)
}
TYPES |= {kind.__name__: kind for kind in (torch.Size, SimpleNamespace, bool, int, float, str)}
BASES = (list, tuple, deque, set, frozenset, dict)

Portrait = Any
Leaf = Callable[[torch.Tensor], Any]  # what stands for a tensor, which may be its digest


class Album:
    """The objects that a trial was built with, by number, and what is known by name.

    Args:
        known: tensors and modules that are no part of a portrait, by the name that stands for them.
        classes: those of which an object may be made.
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
        self.classes.setdefault(_class_name(kind), kind)
        return number


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
        name = self._album.names.get(id(value))
        if name is not None:
            return ["known", name]
        if isinstance(value, torch.dtype):
            return ["dtype", str(value).removeprefix("torch.")]
        if isinstance(value, torch.device):
            return ["device", str(value)]
        if type(value) in (bytes, complex):
            return [type(value).__name__, *_atom(value)]
        if isinstance(value, type) and self._album.classes.get(_class_name(value)) is value:
            return ["type", _class_name(value)]
        number = self._album.numbers.get(id(value))
        if number is None and self._first:
            number = self._album.enter(value)
        if id(value) in self._met:
            return ["same", number] if number is not None else ["again", self._met[id(value)][0]]
        place = len(self._met)
        self._met[id(value)] = place, value  # held, or its identity might be given out again
        self._parts += 1
        content = self._content(value) if self._parts < MOST_PARTS else None
        if number is not None:
            return ["same", number] if content is None else ["same", number, *content]
        if content is None or not self._can_be_made(value, content):
            self.strangers = True
            return ["stranger", place]
        return ["new", place, *content]

    def _can_be_made(self, value: Any, content: list[Any]) -> bool:
        if content[0] in ("tensor", "array", "generator"):
            return content[0] != "array" or value.dtype.fields is None
        return content[0] != "cells" and content[1] in self._album.classes

    def _content(self, value: Any) -> list[Any] | None:
        """What is in an object: its kind, its class and its parts; None where nothing is seen."""
        if id(value) in self._album.outside:
            return None
        kind = _class_name(type(value))
        if isinstance(value, torch.Tensor):
            return self._of_tensor(value)
        if isinstance(value, np.ndarray):
            raw = value.dtype.hasobject or type(value) is not np.ndarray
            whole = None if raw else np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            return whole if whole is None else [
                "array", value.dtype.str, list(value.shape), self._leaf(torch.from_numpy(whole))
            ]  # fmt: skip
        if isinstance(value, np.generic):
            return ["array", value.dtype.str, None, self._leaf(torch.tensor([*value.tobytes()]))]
        if is_generator(value):
            return ["generator", *map(self.paint, generator_state(value))]
        if isinstance(value, Enum):
            return ["enum", kind, value.name]
        if isinstance(value, FunctionType):
            cells = value.__closure__ or ()
            seen = cells and not is_foreign(value.__module__ or "")
            return ["cells", *map(self._of_cell, cells)] if seen else None
        if isinstance(value, MethodType):
            return ["cells", self.paint(value.__self__)]
        if isinstance(value, partial):
            return ["cells", *map(self.paint, (value.func, *value.args, *value.keywords.values()))]
        if isinstance(value, BASES):
            own = [] if type(value) in TYPES.values() else self._attributes(value)
            return [*self._of_container(value, kind), own]
        return ["object", kind, self._attributes(value)] if _is_plain(value) else None

    def _of_tensor(self, value: torch.Tensor) -> list[Any] | None:
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            return None
        if type(value) not in (torch.Tensor, nn.Parameter, nn.Buffer):
            return None
        leaf = value.requires_grad and value.is_leaf  # what led to the others ends with a pause
        parameter = isinstance(value, nn.Parameter)
        return ["tensor", parameter, leaf, self._leaf(value), str(value.device)]

    def _of_cell(self, cell: Any) -> Portrait:
        try:
            return self.paint(cell.cell_contents)
        except ValueError:  # a variable that has no value yet
            return ["empty"]

    def _of_container(self, value: Any, kind: str) -> list[Any]:
        if isinstance(value, dict):
            made_by = self.paint(value.default_factory) if isinstance(value, defaultdict) else None
            pairs = [[self.paint(k), self.paint(v)] for k, v in dict.items(value)]
            return ["dict", kind, made_by, pairs]
        if isinstance(value, (set, frozenset)):
            return ["set", kind, None, sorted(map(self.paint, value), key=repr)]
        most = value.maxlen if isinstance(value, deque) else None
        numbers = _numbers(value)
        if numbers is not None:
            return ["numbers", kind, most, self._leaf(numbers)]
        return ["list", kind, most, [self.paint(item) for item in value]]

    def _attributes(self, value: Any) -> list[Any]:
        hidden = HOOKS if isinstance(value, nn.Module) else ()
        held = attributes_of(value).items()
        return [[key, self.paint(item)] for key, item in held if key not in hidden]


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
        tag, *rest = portrait
        if tag in _ATOMS:
            return _ATOMS[tag](*rest)
        if tag == "type":
            return self._album.classes[rest[0]]
        if tag == "known":
            return self._album.known[rest[0]]
        if tag == "again":
            return self._made[rest[0]]
        place, content = rest[0], rest[1:]
        if tag == "same":
            live = self._album.objects[place]
            return self._fill(live, *content) if content else live
        if tag != "new":
            raise ValueError(f"a portrait holds {tag!r}")
        return self._make(place, *content)

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
        cells = live.__closure__ if isinstance(live, FunctionType) else [None] * len(parts)
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
        for base, add in ((list, list.extend), (deque, deque.extend), (set, set.update)):
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
        if kind == "object" and _is_plain_class(cls):
            made = self._keep(place, object.__new__(cls))
            self._fill_attributes(made, parts[1])
            return made
        return self._make_container(place, kind, cls, *parts[1:])

    def _make_container(
        self, place: int, kind: str, cls: Any, option: Any, parts: Any, own: Any
    ) -> Any:
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


def digest(tensor: torch.Tensor) -> str:
    """A tensor's kind and content in a few characters."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    found = hashlib.blake2b(plain.reshape(-1).view(torch.uint8).numpy().data, digest_size=16)
    return f"{tensor.dtype}{tuple(tensor.shape)}{found.hexdigest()}"


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


def _numbers(value: Any) -> torch.Tensor | None:
    """A long list of nothing but floats, or of nothing but small ints, as a tensor."""
    if len(value) < 100 or type(value[0]) not in (int, float):
        return None
    kinds = set(map(type, value))
    if kinds == {float}:
        return torch.tensor([*value], dtype=torch.float64)
    if kinds == {int} and max(map(abs, value)) < 2**62:
        return torch.tensor([*value], dtype=torch.int64)
    return None


def _is_plain(value: Any) -> bool:
    return not isinstance(value, type) and _is_plain_class(type(value))


def _is_plain_class(kind: type) -> bool:
    """Whether its objects are no more than their attributes: Python's, and no library's machine."""
    if any(not cls.__flags__ & 1 << 9 for cls in kind.__mro__[:-1]):
        return False  # it, or a class that it builds upon, is written in C
    if issubclass(kind, (nn.Module, Optimizer)) or kind.__name__ in ("SimpleNamespace", "Namespace"):
        return True
    if kind.__module__.startswith(("torch.distributions.", "torch.utils.data.")):
        return True
    top = kind.__module__.partition(".")[0]
    return top not in sys.stdlib_module_names and top not in ("torch", "numpy")


def _class_name(kind: type) -> str:
    return kind.__name__ if kind in TYPES.values() else f"{kind.__module__}.{kind.__qualname__}"


def _atom(value: Any) -> list[Any]:
    return [value.decode("latin-1")] if isinstance(value, bytes) else [value.real, value.imag]


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
