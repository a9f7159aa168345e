"""Values of every kind that a problem may hold, and a picture of one that can be compared.

A picture has the values bit for bit, dtypes, shapes, strides, flags and attributes, which objects
are the same one, and which tensors and arrays stand on the same memory.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import random
import types
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset


class Picture:
    """Draws values as JSON; what was seen before is named by its number."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._kept: list[object] = []
        self._memory: list[tuple[int, int]] = []

    def of(self, value: Any) -> Any:
        plain = value is None or isinstance(value, (bool, int, str, bytes, float, complex))
        if plain:
            return [type(value).__name__, value.hex() if isinstance(value, float) else repr(value)]
        if id(value) in self._seen:
            return ["seen", self._seen[id(value)]]
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("__mp_")
        return [kind.rpartition(".")[2], *self._content(value)]

    def _content(self, value: Any) -> list[Any]:  # noqa: PLR0911, PLR0912
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, np.generic):
            return [str(value.dtype), value.tobytes().hex()]
        if isinstance(value, torch.Generator):
            return [_hash(value.get_state())]
        if isinstance(value, np.random.Generator):
            return [repr(value.bit_generator.state)]
        if isinstance(value, np.random.RandomState):
            return [_hash(value.get_state()[1])]
        if isinstance(value, random.Random):
            return [repr(value.getstate())[:2000]]
        if isinstance(value, dict):
            return [[[self.of(k), self.of(v)] for k, v in value.items()]]
        if isinstance(value, (list, tuple, collections.deque)):
            return [[self.of(item) for item in value], *self._attributes(value)]
        if isinstance(value, (set, frozenset)):
            return [sorted(map(repr, value))]
        if isinstance(value, functools.partial):
            return [self.of(value.func), self.of(value.args), self.of(value.keywords)]
        if isinstance(value, types.FunctionType):
            cells = [self.of(cell.cell_contents) for cell in value.__closure__ or ()]
            return [value.__name__, cells, self.of(value.__defaults__)]
        if isinstance(value, types.MethodType):
            return [value.__name__, self.of(value.__self__)]
        if isinstance(value, (torch.dtype, torch.device, np.dtype, type)):
            return [str(value)]
        return self._attributes(value)

    def _attributes(self, value: Any) -> list[Any]:
        names = [n for k in type(value).__mro__ for n in getattr(k, "__slots__", ())]
        slots = {n: getattr(value, n) for n in names if hasattr(value, n) and n != "__weakref__"}
        state = {**getattr(value, "__dict__", {}), **slots}
        return [[[name, self.of(item)] for name, item in sorted(state.items())]]

    def _where(self, address: int, length: int) -> Any:
        """Which of the pieces of memory seen so far it overlaps, and how far from their start."""
        if not length:
            return None
        overlaps = [
            [number, address - first]
            for number, (first, last) in enumerate(self._memory)
            if first < address + length and address < last
        ]
        self._memory.append((address, address + length))
        return [overlaps, address % 64]

    def _tensor(self, t: torch.Tensor) -> list[Any]:
        shape = [] if t.is_nested else list(t.shape)
        told: list[Any] = [str(t.dtype), str(t.layout), shape, t.requires_grad, t.is_leaf]
        told += [t.is_conj(), t.is_neg(), t.is_quantized, str(t.device)]
        told.append(self.of(t.grad) if t.is_leaf and not t.is_meta else None)
        told.append(
            self.of(dict(sorted(t.__dict__.items()))) if type(t).__name__ != "NestedTensor" else 0
        )
        plain = t.detach()
        if t.is_meta:
            return [*told, list(t.stride())]
        if t.is_nested:
            return [*told, [_hash(part) for part in plain.unbind()]]
        if t.layout is torch.sparse_coo:
            parts = (plain._indices(), plain._values())
            return [*told, plain.is_coalesced(), [self.of(part) for part in parts]]
        if t.layout is not torch.strided:
            parts = (plain.crow_indices(), plain.col_indices(), plain.values())
            return [*told, [self.of(part) for part in parts]]
        storage = plain.untyped_storage()
        where = self._where(storage.data_ptr(), storage.nbytes())
        told += [list(t.stride()), t.storage_offset(), storage.nbytes(), where]
        if t.is_quantized:
            return [*told, str(t.qscheme()), t.q_scale(), t.q_zero_point(), _hash(t.int_repr())]
        return [*told, _hash(torch.empty(0, dtype=torch.uint8).set_(storage)), _hash(plain)]

    def _array(self, a: np.ndarray) -> list[Any]:
        inner = self._attributes(a) if type(a) is not np.memmap else []
        told = [repr(a.dtype), repr(a.dtype.metadata), list(a.shape), a.flags.writeable, inner]
        if a.dtype.hasobject:
            return [*told, self.of(a.tolist()) if not isinstance(a, np.void) else None]
        low, high = np.lib.array_utils.byte_bounds(a) if a.size else (0, 0)
        return [*told, list(a.strides), self._where(low, high - low), _hash(np.asarray(a))]


def _hash(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        value = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        value = value.view(torch.uint8).numpy() if value.numel() else np.zeros(0)
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]


def picture(value: Any) -> str:
    """All that can be seen of a value."""
    return json.dumps(Picture().of(value))


# Classes that no other process could import by their module's name ------------------------------


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    inner: Any


class Rows(Dataset):
    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([i / 8]), torch.tensor([i / 4])


class Tagged(np.ndarray):
    """An array with an attribute that numpy's own pickle forgets."""


class Marked(torch.Tensor):
    """A tensor's subclass."""


class Scale(nn.Parameter):
    """A parameter's subclass, which torch's own pickle makes a plain parameter."""


Named = collections.namedtuple("Named", "first second")


def closure_of(value: Any) -> Any:
    """A function that keeps a value in its closure."""

    def keep(plus: Any = (1, 2)) -> Any:
        return value, plus

    return keep


class Keeper:
    """An object whose bound method is handed over."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def method(self) -> Any:
        return self.value
