"""Values of every kind that a problem may hold, and a picture of one that can be compared.

A picture has the values bit for bit, dtypes, shapes, strides, flags and attributes, which objects
are the same one, and which tensors and arrays stand on the same memory.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import functools
import hashlib
import json
import random
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
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


# One value of each kind -------------------------------------------------------------------------


def kinds(folder: Path) -> dict[str, Any]:
    """Values of every kind that can be handed over; two of a kind share memory where they can."""
    base, store = np.arange(60.0).reshape(6, 10), torch.arange(24.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # prototypes and deprecations are torch's own affair
        return {**arrays(base), **maps(folder), **tensors(store), **others(base, store)}


def arrays(base: np.ndarray) -> dict[str, Any]:
    fixed = np.arange(7)
    fixed.flags.writeable = False
    objects, loop = np.empty(3, object), np.empty(2, object)
    objects[:], loop[0] = [1, "a", base], loop
    tagged = np.arange(4.0).view(Tagged)
    tagged.unit = "m"
    described = np.dtype("f4", metadata={"k": 1})
    text = np.dtypes.StringDType()
    return {
        "views": [base, base[1:], base[:, 2], base.T, base[::-1], base[::2, ::-3]],
        "read-only": fixed,
        "broadcast": np.broadcast_to(np.arange(3.0), (4, 3)),
        "windows": np.lib.stride_tricks.sliding_window_view(np.arange(10.0), 3),
        "fortran": np.asfortranarray(base),
        "empty": [np.zeros((0, 3)), np.array(5.0), np.zeros((3, 0, 2), order="F")],
        "structured": np.zeros(3, dtype=[("a", "i4"), ("b", "f8", (2,)), ("c", "S3")]),
        "texts": [np.array(["a", "bcd"]), np.array([b"x"]), np.zeros(2, "V3"), np.zeros(3, "S0")],
        "times": [np.array(["2020-01-01"], "M8[D]"), np.array([5], "m8[ns]")],
        "big-endian": np.arange(4, dtype=">i2"),
        "truth": np.ones(3, bool),
        "widths": [np.arange(3, dtype=t) for t in ("f2", np.longdouble, "c8", "u8")],
        "variable texts": np.array(["a", "bb" * 50], dtype=text),
        "objects": [objects, loop, np.array([(1, "x")], dtype=[("a", "i4"), ("b", "O")])],
        "record": np.rec.array([(1, 2.0), (3, 4.0)], dtype=[("x", "i4"), ("y", "f8")]),
        "masked": np.ma.array([1, 2, 3], mask=[0, 1, 0]),
        "subclass": [tagged, tagged[1:]],
        "metadata": np.zeros(2, dtype=described),
    }


def maps(folder: Path) -> dict[str, Any]:
    path = folder / "numbers"
    path.write_bytes(np.arange(5000, dtype="f4").tobytes())
    read, changed = np.memmap(path, "f4", "r"), np.memmap(path, "f4", "c")
    changed[3] = 77
    views = [read, read[100:200], read[::-2], read.reshape(50, 100)[:, 3], read[:0]]
    return {"map": views, "plain view": np.asarray(read[7:]), "changed map": changed}


def tensors(store: torch.Tensor) -> dict[str, Any]:
    noted, used = torch.zeros(3), torch.zeros(3, requires_grad=True)
    noted.note = "hello"  # type: ignore[attr-defined]
    used.sum().backward()
    tied = nn.Parameter(torch.ones(2))
    tied.no_decay, tied.grad = True, torch.full((2,), 5.0)  # type: ignore[attr-defined]
    eye, row = torch.eye(3), np.arange(10.0)
    pairs = torch.arange(6.0).view(3, 2)
    dtypes = (
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
        *(torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float64),
        *(torch.complex32, torch.complex64, torch.complex128),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    )
    conjugate = torch.view_as_complex(pairs).conj()
    quantized = torch.quantize_per_tensor(store, 0.1, 0, torch.qint8)
    parts, layouts = [torch.zeros(2), torch.ones(3)], (torch.strided, torch.jagged)
    nested = [torch.nested.nested_tensor(parts, layout=layout) for layout in layouts]
    rows = eye.to_sparse_csr()
    return {
        "tensor views": [store, store[3:], store.view(4, 6).t(), store[::2]],
        "overlapping": [store.as_strided((3, 3), (0, 1)), torch.zeros(1, 3).expand(4, 3)],
        "empty tensors": [torch.zeros(0, 3), torch.zeros(()), torch.zeros(3, 0)],
        "dtypes": [torch.zeros(3, dtype=t) for t in dtypes],
        "lazy bits": [conjugate, conjugate.imag, conjugate.imag[::2]],
        "sparse": [eye.to_sparse(), eye.to_sparse().requires_grad_(), rows],
        "uncoalesced": torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,)),
        "nested": nested,
        "quantized": quantized,
        "meta": [torch.empty(3, 2, device="meta").t(), nn.Parameter(torch.empty(3, device="meta"))],
        "parameters": [tied, tied, nn.Parameter(torch.arange(3), requires_grad=False)],
        "tensor subclasses": [torch.ones(2).as_subclass(Marked), Scale(torch.ones(3))],
        "attributes": [noted, used, nn.Buffer(torch.ones(2))],
        "channels last": torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "one memory": [row, torch.from_numpy(row), torch.from_numpy(row[3:]), row[2:5]],
        "storage": [store.untyped_storage(), store],
        "module": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
    }


def others(base: np.ndarray, store: torch.Tensor) -> dict[str, Any]:
    cycle: list[Any] = [1]
    cycle.append(cycle)
    return {
        "cycle": cycle,
        "the same twice": [base, base, store, store],
        "generators": [
            *(torch.Generator().manual_seed(5), np.random.default_rng(3), random.Random(5)),
            np.random.RandomState(4),
        ],
        "objects of classes": [Pair(base, store), Slotted(base), Rows(store), Named(1, base)],
        "functions": [
            *(closure_of(store), functools.partial(closure_of, base), Keeper(base).method),
        ],
        "containers": [
            *(collections.OrderedDict(a=base), collections.Counter("aab"), {1, 2}, frozenset([3])),
            *(collections.defaultdict(list, {1: [2]}), collections.deque([1, base], 3)),
        ],
        "plain": [
            *(datetime.datetime(2020, 1, 1), decimal.Decimal("1.1"), range(5), Ellipsis, 2**100),
            *(torch.float32, torch.Size([1]), torch.device("cpu"), float("nan"), -0.0, b"x"),
            *(np.float32(1.5), np.datetime64("2020-01-01"), bytearray(b"xyz")),
        ],
    }


# Values at random ---------------------------------------------------------------------------------


@st.composite
def nested_values(draw: st.DrawFn) -> Any:
    """Containers in one another, of arrays and tensors that may share their memory."""
    pool = [draw(memory()) for _ in range(draw(st.integers(1, 3)))]
    leaves = st.one_of(
        st.builds(view_of, st.sampled_from(pool), st.integers(0, 2**20)),
        st.sampled_from(pool),
        st.one_of(
            st.none(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3)
        ),
    )
    keys = st.one_of(st.text(max_size=3), st.integers(0, 9))
    trees = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(keys, inner, max_size=3),
            st.tuples(inner, inner),
            *(st.builds(make, inner) for make in (closure_of, Rows, Slotted, bound, in_objects)),
            st.builds(Pair, inner, inner),
            st.builds(functools.partial, st.just(closure_of), inner),
        ),
        max_leaves=12,
    )
    return draw(trees)


def bound(value: Any) -> Any:
    return Keeper(value).method


def in_objects(value: Any) -> np.ndarray:
    made = np.empty(1, object)
    made[0] = value
    return made


DTYPES = [
    *"?bBhHiIlLefdFD",
    "M8[s]",
    "m8[ms]",
    "S3",
    "U2",
    ">f8",
    "V5",
    [("a", "u1"), ("b", "f8")],
]


@st.composite
def memory(draw: st.DrawFn) -> Any:
    """An array, or a tensor on memory of its own or of an array."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    count = int(np.prod(shape)) * dtype.itemsize
    noise = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 100, count, dtype=np.uint8)
    array = np.frombuffer(bytearray(noise.tobytes()), dtype) if count else np.zeros(0, dtype)
    array = array.reshape(shape, order=draw(st.sampled_from("CF")))
    kind = draw(st.sampled_from(["array", "read-only", "tensor", "cast", "parameter"]))
    if kind in ("array", "read-only") or dtype.kind not in "biufc" or dtype.byteorder == ">":
        array.flags.writeable = kind != "read-only"
        return array
    tensor = torch.from_numpy(array)
    if kind == "cast" and not tensor.is_complex():
        return tensor.to(draw(st.sampled_from([torch.bfloat16, torch.float8_e5m2, torch.int64])))
    floating = tensor.is_floating_point()
    return nn.Parameter(tensor, requires_grad=floating) if kind == "parameter" else tensor


def view_of(value: Any, number: int) -> Any:
    """One of the views of an array or a tensor."""
    plain = value.detach() if isinstance(value, torch.Tensor) else value
    if plain.ndim == 0:
        return plain[None]
    start, step = number % 3, 1 + number // 3 % 3
    backwards = isinstance(plain, np.ndarray) and number % 2
    views = [
        plain[start::step],
        plain[::-1] if backwards else plain[:1],
        plain.swapaxes(0, -1)[start:],
        plain,
    ]
    if isinstance(plain, torch.Tensor) and plain.is_complex():
        views += [plain.conj(), plain.conj().imag]
    return views[number // 9 % len(views)]
