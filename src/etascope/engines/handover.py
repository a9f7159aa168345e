"""How a problem and the states of its trials get from one process to another.

A problem is a pickle and the memory that its tensors and arrays stand on, which the workers of a
machine share: on this one through a file in memory that each maps, elsewhere through Ray's object
store. Beside them goes what its first batch and first loss are here, and no worker begins before
it has found the same. All of it stays in memory between own processes; nothing is written to a
disk.
"""

from __future__ import annotations

import copy
import io
import mmap
import os
import tempfile
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import NamedTuple

import numpy as np
from torch import nn

from etascope.engines.culprit import refusal
from etascope.engines.importing import can_be_imported, is_installed
from etascope.engines.pickling import Pickler, unpickle
from etascope.engines.witness import Witness, compare, witness_of
from etascope.errors import RAISED
from etascope.plan import Plan
from etascope.problems.problem import Problem

ALIGNMENT = 64  # bytes: what vector instructions like


def memory_file() -> int:
    """A descriptor of a file that has no name and is in memory: it ends with its last user."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("etascope")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Half the time of copying into a mapping, which faults in page after page."""
    rest = buffer.cast("B") if buffer.nbytes else memoryview(b"")
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def send_state(connection: Connection, parts: Sequence[memoryview]) -> None:
    """Hand over a state in parts; the receiver maps what was written, so neither waits."""
    descriptor, offset = memory_file(), 0
    try:
        for part in parts:
            _write(descriptor, part, offset)
            offset += part.nbytes
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


class Layout(NamedTuple):
    """Where the parts of a problem go in one piece of memory.

    Attributes:
        places: (offset, length) of each part; those that overlap here overlap there.
        pieces: what to write, each with its offset; no byte of ours is in it twice.
        end: the size of the whole.
    """

    places: list[tuple[int, int]]
    pieces: list[tuple[int, memoryview]]
    end: int

    @property
    def written_bytes(self) -> int:
        """What there is to write, without the gaps."""
        return sum(piece.nbytes for _, piece in self.pieces)


def lay_out(parts: Sequence[memoryview], start: int = 0) -> Layout:
    """Lay out the parts of a problem so that what shares memory here shares it there.

    Every address keeps its remainder by `ALIGNMENT`, so that numbers stand there as they do here.

    Args:
        parts: any buffers; their memory must stay where it is until the pieces are written.
        start: how many bytes to leave free before them.
    """
    addresses = [_address(part) for part in parts]
    places = [(start, 0)] * len(parts)
    pieces: list[tuple[int, memoryview]] = []
    shift = covered = 0  # of the piece of memory in progress: from its addresses to offsets
    end = start
    for number in sorted(range(len(parts)), key=lambda n: (addresses[n], n)):
        address, part = addresses[number], parts[number]
        if not part.nbytes:
            continue
        if address >= covered:  # a piece of memory that no other part shares
            shift = end + (address - end) % ALIGNMENT - address
            covered = address
        places[number] = (address + shift, part.nbytes)
        if address + part.nbytes > covered:
            pieces.append((covered + shift, part.cast("B")[covered - address :]))
            covered = address + part.nbytes
            end = covered + shift
    return Layout(places, pieces, end)


def _address(part: memoryview) -> int:
    return int(np.frombuffer(part, np.uint8).ctypes.data) if part.nbytes else 0


def pickle_problem(problem: Problem, plan: Plan, *, elsewhere: bool = False) -> list[memoryview]:
    """A problem and its plan as a pickle, followed by the memory of tensors and arrays.

    Args:
        problem, plan: what is handed over.
        elsewhere: whether the receiver may stand on another machine, which has the same packages
            installed and none of our other files.

    Raises:
        UsageError: if something in it (an open file, a lock) cannot leave this process; it names
            the path to it.
    """
    bare = copy.copy(problem)  # its sources hold the data
    for name in ("train", "valid", "test"):
        object.__setattr__(bare, name, None)
    if isinstance(problem.model, nn.Module):
        # Each trial trains a copy, and a copy holds no graph of what the user has done with it.
        object.__setattr__(bare, "model", problem.copy_of_the_module())

    def pickled(value: object) -> list[memoryview]:
        file = io.BytesIO()
        importable = is_installed if elsewhere else can_be_imported
        pickler = Pickler(file, importable, elsewhere=elsewhere)
        pickler.dump(value)
        return [memoryview(file.getbuffer()), *pickler.memory]

    try:
        return pickled((bare, plan))
    except RAISED as error:
        raise refusal(problem, plan, pickled, error) from error


def unpickle_problem(parts: Iterable[memoryview], witness: Witness) -> tuple[Problem, Plan]:
    """The problem and the plan of `pickle_problem`; they keep using the memory handed in.

    Args:
        parts: of the problem.
        witness: what `witness_of` found where it comes from.

    Raises:
        EtascopeError: if the problem is another one here.
    """
    data, *memory = parts
    witness.settings.apply()
    problem, plan = unpickle(data, memory)
    compare(witness, witness_of(problem))
    return problem, plan


class Parcel(NamedTuple):
    """A problem and a plan in a memory file.

    Attributes:
        descriptor: of the file.
        places: where its parts are, (offset, length); the pickle is the first of them.
        shared_bytes: tensors and arrays: in memory once, however many workers there are.
        witness: what the problem's first batch and first loss are here.
    """

    descriptor: int
    places: list[tuple[int, int]]
    shared_bytes: int
    witness: Witness

    @property
    def copied_bytes(self) -> int:
        """Everything else, built once in each worker."""
        return self.places[0][1]


def pack_problem(problem: Problem, plan: Plan) -> Parcel:
    """Put a problem and its plan into a memory file; raises as `pickle_problem` does."""
    parts = pickle_problem(problem, plan)
    layout, descriptor = lay_out(parts), memory_file()
    os.ftruncate(descriptor, max(layout.end, 1))
    for offset, piece in layout.pieces:
        _write(descriptor, piece, offset)
    shared = layout.written_bytes - parts[0].nbytes
    # Last, since drawing a batch may move what has been pickled, such as a generator.
    return Parcel(descriptor, layout.places, shared, witness_of(problem))


def send_problem(connection: Connection, parcel: Parcel) -> None:
    """Hand a parcel over."""
    connection.send((parcel.places, parcel.shared_bytes, parcel.witness))
    send_handle(connection, parcel.descriptor, None)


def receive_problem(connection: Connection) -> tuple[Problem, Plan]:
    """The problem and the plan that `send_problem` handed over.

    Raises:
        EOFError: if nobody hands one over.
        EtascopeError: if the problem is another one here.
    """
    content = connection.recv()
    descriptor = recv_handle(connection)
    try:
        return unpack_problem(Parcel(descriptor, *content))
    finally:
        os.close(descriptor)


def unpack_problem(parcel: Parcel) -> tuple[Problem, Plan]:
    """The problem and the plan; what is written to its tensors stays in this process."""
    length = os.fstat(parcel.descriptor).st_size
    # A private mapping: pages are shared until somebody writes to one.
    mapped = memoryview(mmap.mmap(parcel.descriptor, length, flags=mmap.MAP_PRIVATE))
    return unpickle_problem((mapped[at : at + n] for at, n in parcel.places), parcel.witness)
