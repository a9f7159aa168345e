"""How a problem and the states of its trials get from one process to another.

The memory of tensors and arrays is put aside, so that the workers of a machine can share it: on
this one through a file in memory that each maps, elsewhere through Ray's object store. Everything
else of the problem is pickled, by value where the receiver could not import it (notebooks,
`__main__`, lambdas). All of it stays in memory between own processes; nothing is written to a
disk.
"""

from __future__ import annotations

import copy
import io
import mmap
import os
import pickle
import site
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.machinery import PathFinder
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import cloudpickle
import torch

from etascope.errors import UsageError
from etascope.plan import Plan
from etascope.problems.problem import Problem

ALIGNMENT = 64  # bytes: what vector instructions like


def memory_file() -> int:
    """A descriptor of a file that has no name and is in memory: it ends with its last user."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("etascope")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def lay_out(
    buffers: Iterable[memoryview], start: int = 0, alignment: int = ALIGNMENT
) -> tuple[list[tuple[int, int]], int]:
    """Where each buffer goes in one piece of memory, (offset, length), and where the last ends."""
    places, end = [], start
    for buffer in buffers:
        places.append((end, buffer.nbytes))
        end += -(-buffer.nbytes // alignment) * alignment
    return places, end


def write_buffers(
    buffers: Sequence[memoryview], alignment: int = ALIGNMENT
) -> tuple[int, list[tuple[int, int]]]:
    """A memory file that holds the buffers, and where each of them is: (offset, length)."""
    places, end = lay_out(buffers, alignment=alignment)
    descriptor = memory_file()
    os.ftruncate(descriptor, max(end, 1))
    for buffer, (offset, length) in zip(buffers, places, strict=True):
        # Half the time of copying into a mapping, which faults in page after page.
        rest = buffer.cast("B") if length else memoryview(b"")
        while rest:
            rest = rest[os.pwrite(descriptor, rest, offset + length - len(rest)) :]
    return descriptor, places


def send_state(connection: Connection, parts: Sequence[memoryview]) -> None:
    """Hand over a state in parts; the receiver maps what was written, so neither waits."""
    descriptor, _ = write_buffers(parts, alignment=1)
    try:
        send_handle(connection, descriptor, None)
    finally:
        os.close(descriptor)


def receive_state(connection: Connection, length: int) -> memoryview:
    """The state that `send_state` handed over; it needs no copy."""
    descriptor = recv_handle(connection)
    try:
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # half the time of page faults
        return memoryview(mmap.mmap(descriptor, length, flags=flags, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)


# Problems -------------------------------------------------------------------------------------


class Parcel(NamedTuple):
    """A problem and a plan in a memory file: its descriptor and the places of its parts."""

    descriptor: int
    places: list[tuple[int, int]]

    @property
    def shared_bytes(self) -> int:
        """Tensors and arrays: in memory once, however many workers there are."""
        return sum(length for _, length in self.places[1:])

    @property
    def copied_bytes(self) -> int:
        """Everything else, built once in each worker."""
        return self.places[0][1]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Puts the memory of tensors aside and pickles by value what cannot be imported."""

    def __init__(self, file: io.BytesIO, can_be_imported: Callable[[str], bool]) -> None:
        self.buffers: list[memoryview] = []
        self._storages: dict[int, int] = {}
        self._can_be_imported = cache(can_be_imported)
        super().__init__(file, protocol=5, buffer_callback=self._put_aside)

    def _put_aside(self, buffer: pickle.PickleBuffer) -> None:
        self.buffers.append(buffer.raw())

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is not torch.Tensor or not _is_plain(obj):
            return None
        storage = obj.untyped_storage()
        if storage.data_ptr() not in self._storages:
            self._storages[storage.data_ptr()] = len(self.buffers)
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            self.buffers.append(memoryview(whole.numpy().data))
        place = self._storages[storage.data_ptr()]
        where = (obj.storage_offset(), tuple(obj.shape), obj.stride())
        return place, obj.dtype, where, obj.requires_grad

    def reducer_override(self, obj: Any) -> Any:
        module = obj.__module__ if isinstance(obj, (type, FunctionType)) else "__main__"
        known = module in sys.modules and module != "__main__"
        if known and not self._can_be_imported(module):
            cloudpickle.register_pickle_by_value(sys.modules[module])
            try:
                return super().reducer_override(obj)
            finally:
                cloudpickle.unregister_pickle_by_value(sys.modules[module])
        return super().reducer_override(obj)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: memoryview, buffers: list[memoryview]) -> None:
        self._tensors = [torch.frombuffer(b, dtype=torch.uint8) if b else None for b in buffers]
        super().__init__(io.BytesIO(data), buffers=buffers)

    def persistent_load(self, pid: Any) -> torch.Tensor:
        place, dtype, (offset, shape, stride), requires_grad = pid
        tensor, whole = torch.empty(0, dtype=dtype), self._tensors[place]
        if whole is None:
            return torch.empty(shape, dtype=dtype, requires_grad=requires_grad)
        tensor.set_(whole.untyped_storage(), offset, shape, stride)
        return tensor.requires_grad_(requires_grad)


def pickle_problem(problem: Problem, plan: Plan, *, elsewhere: bool = False) -> list[memoryview]:
    """A problem and its plan as a pickle, followed by the memory of tensors and arrays.

    Args:
        problem, plan: what is handed over.
        elsewhere: whether the receiver may stand on another machine, which has the same packages
            installed and none of our other files.

    Raises:
        UsageError: if something in it (an open file, a lock) cannot leave this process.
    """
    bare = copy.copy(problem)  # its sources hold the data
    for name in ("train", "valid", "test"):
        object.__setattr__(bare, name, None)
    file = io.BytesIO()
    pickler = _Pickler(file, _is_installed if elsewhere else _can_be_imported)
    try:
        pickler.dump((bare, plan))
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise UsageError(
            f"the problem cannot be handed to another process ({type(error).__name__}: {text}); "
            "open files and connections inside the functions that use them, or use engine serial"
        ) from error
    return [memoryview(file.getbuffer()), *pickler.buffers]


def unpickle_problem(parts: Iterable[memoryview]) -> tuple[Problem, Plan]:
    """The problem and the plan of `pickle_problem`; they keep using the memory handed in."""
    data, *buffers = parts
    with warnings.catch_warnings():  # memory that must not be written to is none of torch's cares
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        problem, plan = _Unpickler(data, buffers).load()
    return problem, plan


def pack_problem(problem: Problem, plan: Plan) -> Parcel:
    """Put a problem and its plan into a memory file; raises as `pickle_problem` does."""
    return Parcel(*write_buffers(pickle_problem(problem, plan)))


def send_problem(connection: Connection, parcel: Parcel) -> None:
    """Hand a parcel over."""
    connection.send(parcel.places)
    send_handle(connection, parcel.descriptor, None)


def receive_problem(connection: Connection) -> tuple[Problem, Plan]:
    """The problem and the plan that `send_problem` handed over; EOFError if nobody does."""
    places = connection.recv()
    descriptor = recv_handle(connection)
    try:
        return unpack_problem(Parcel(descriptor, places))
    finally:
        os.close(descriptor)


def unpack_problem(parcel: Parcel) -> tuple[Problem, Plan]:
    """The problem and the plan; what is written to its tensors stays in this process."""
    length = os.fstat(parcel.descriptor).st_size
    # A private mapping: pages are shared until somebody writes to one.
    mapped = mmap.mmap(parcel.descriptor, length, flags=mmap.MAP_PRIVATE)
    return unpickle_problem(memoryview(mapped)[at : at + n] for at, n in parcel.places)


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.is_leaf
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _can_be_imported(name: str) -> bool:
    """Whether a fresh process with our sys.path would find the same module under this name."""
    spec = getattr(sys.modules[name], "__spec__", None)
    if name in sys.builtin_module_names or (spec is not None and spec.origin == "frozen"):
        return True
    parent = name.rpartition(".")[0]
    if parent in sys.modules and not _can_be_imported(parent):
        return False
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    if parent and path is None:
        return True  # an extension's own submodule: importing its parent makes it
    try:
        found = PathFinder.find_spec(name, path)
    except (ImportError, ValueError):
        found = None
    ours = getattr(sys.modules[name], "__file__", None)
    if found is None:  # made by other modules while they are imported, unless it is a directory
        return ours is None and not getattr(sys.modules[name], "__path__", None)
    return (
        ours is None
        or found.origin is None
        or os.path.realpath(found.origin) == os.path.realpath(ours)
    )


def _is_installed(name: str) -> bool:
    """Whether a module belongs to Python or to an installed package."""
    if name.partition(".")[0] == "etascope":
        return True  # it may run from its source, but no worker runs without it
    file = getattr(sys.modules[name], "__file__", None)
    return file is None or any(
        Path(os.path.realpath(file)).is_relative_to(root) for root in _installation()
    )


@cache
def _installation() -> frozenset[str]:
    """The directories of the standard library and of installed packages."""
    paths = sysconfig.get_paths()
    standard = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return frozenset(
        map(os.path.realpath, {*standard, *site.getsitepackages(), site.getusersitepackages()})
    )
