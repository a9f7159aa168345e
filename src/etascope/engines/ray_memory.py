"""The memory of a problem in the object store of a node, as one array that its actors share."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from etascope.engines.handover import lay_out


def join(parts: Sequence[memoryview]) -> tuple[np.ndarray, list[tuple[int, int]], int]:
    """Put the parts of a problem into one array, with a page of nothing around them.

    Returns:
        The array, the place of each part in it, and how many bytes of them there are.
    """
    layout = lay_out(parts, start=mmap.PAGESIZE)
    whole = np.zeros(layout.end + mmap.PAGESIZE, np.uint8)
    for offset, piece in layout.pieces:
        whole[offset : offset + piece.nbytes] = np.frombuffer(piece, np.uint8)
    return whole, layout.places, layout.written_bytes


def split(whole: np.ndarray, places: Sequence[tuple[int, int]]) -> Iterator[memoryview]:
    """The parts that `join` has put together."""
    return (whole.data[offset : offset + length] for offset, length in places)


def own_pages(whole: np.ndarray) -> np.ndarray:
    """The same memory for this process alone: pages are shared until it writes to one.

    The store is a file in memory without a name, which the process that holds it, the parent of
    this one, has open. Where it cannot be had from there, writing ends this process: torch has no
    read-only tensors, and a write would change the data of every actor of the node.
    """
    with suppress(OSError, ValueError):
        mapped = _mapping_of(whole.ctypes.data)
        for link in Path(f"/proc/{os.getppid()}/fd").iterdir():
            if mapped is not None and _is_file(link, mapped.inode):
                return _map_privately(link, mapped, whole)
    protect(whole)
    return whole


class _Mapping(NamedTuple):
    """A line of /proc/self/maps: where a file's bytes from `offset` on stand in memory."""

    first: int
    offset: int
    inode: int


def _mapping_of(address: int) -> _Mapping | None:
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, inode = line.split()[:5]
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= address < last and int(inode):
            return _Mapping(first, int(offset, 16), int(inode))
    return None


def _is_file(link: Path, inode: int) -> bool:
    try:
        return link.stat().st_ino == inode and "plasma" in str(link.readlink())
    except OSError:  # it was closed meanwhile
        return False


def _map_privately(link: Path, mapped: _Mapping, whole: np.ndarray) -> np.ndarray:
    address = whole.ctypes.data
    skipped = (address - mapped.first) % mmap.PAGESIZE
    offset = mapped.offset + address - mapped.first - skipped
    descriptor = os.open(link, os.O_RDONLY)
    try:
        pages = mmap.mmap(descriptor, skipped + whole.nbytes, mmap.MAP_PRIVATE, offset=offset)
    finally:
        os.close(descriptor)
    return np.frombuffer(pages, np.uint8)[skipped:]


def protect(whole: np.ndarray) -> None:
    """Have writing to the parts in `whole` end this process.

    torch has no read-only tensors, and a write would change the data of every actor of the node.
    Only whole pages can be protected: the page of nothing on either side makes up for that.
    """
    first = -(-whole.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (whole.ctypes.data + whole.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    address, length = ctypes.c_void_p(first), ctypes.c_size_t(last - first)
    if libc.mprotect(address, length, mmap.PROT_READ):
        raise OSError(ctypes.get_errno(), "the problem's memory cannot be protected")
