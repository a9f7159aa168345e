"""Reads IDX files, the format of MNIST, and refuses everything that is not exactly one.

An IDX file is a header and a payload, both big-endian. The header is two zero bytes, one byte
for the type of an item, one byte for the number of dimensions, then 4 bytes, unsigned, for each
dimension; the payload is the items in C order and nothing follows it. The file may be packed as
one gzip member, which its first two bytes tell, whatever its name.

The parser believes nothing it is told: memory grows only with bytes that have really arrived,
and no more than the declared size and one byte is ever decompressed.
"""

import math
import stat
import struct
import sys
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from etascope.errors import DataError

ITEM_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(np.int16),
    0x0C: np.dtype(np.int32),
    0x0D: np.dtype(np.float32),
    0x0E: np.dtype(np.float64),
}
"""The type byte of an IDX header, and the numpy type it stands for."""

MAX_DIMENSIONS = 32
"""The most dimensions that every supported numpy can hold (1.26 stops here)."""

_CHUNK = 1 << 18
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_ONLY = 16 + zlib.MAX_WBITS  # zlib's code for: a gzip header and a checked trailer


def read_idx(path: str | Path, *, max_bytes: int = 1 << 30) -> npt.NDArray[Any]:
    """Read one IDX file, raw or gzip-packed, into an array of native byte order.

    Args:
        path: The file; whether it is packed is told by its content, not by its name.
        max_bytes: The most bytes, header included, that the decompressed file may declare.

    Returns:
        A writable array of the declared shape; its type is one of `ITEM_TYPES`.

    Raises:
        DataError: The file cannot be read, or is not exactly one IDX file of at most `max_bytes`;
            the message names the file and the byte offset, counted in the decompressed stream.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "labels-idx1-ubyte"
        ...     _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        ...     read_idx(file)
        array([7, 2, 1], dtype=uint8)

    Source: the section on the file formats of the MNIST database, LeCun, Cortes and Burges.

    Divergence: readers built on Python's `gzip` accept several members, zeros after the last
    one and bytes after the payload; here each of them is an error.
    """
    path = Path(path)
    with _open(path) as file:
        stream = _Stream(path, file)
        dtype, shape = _read_header(stream)
        start = stream.offset
        declared = start + math.prod(shape) * dtype.itemsize
        if declared > max_bytes:
            raise stream.error(
                f"the header declares {declared} bytes in all, more than the {max_bytes} allowed"
            )
        payload = stream.take(declared - start)
        if stream.offset < declared:
            raise stream.error(f"the file ends here, but its header declares {declared} bytes")
        if stream.take(1):
            raise _error(path, declared, "bytes follow the payload that the header declares")
    try:
        array = np.ndarray(shape, dtype=dtype, buffer=payload)
    except ValueError as error:  # without items, the other dimensions may still be too large
        raise _error(path, 4, f"numpy cannot hold the shape {shape}") from error
    return array.byteswap(inplace=True) if sys.byteorder == "little" else array


class _Stream:
    """The decompressed bytes of a file, handed out in bounded pieces, and how many have gone."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.offset = 0
        self._path = path
        self._file = file
        self._ahead = self._fetch(2)
        self._inflate = zlib.decompressobj(_GZIP_ONLY) if self._ahead == _GZIP_MAGIC else None

    def error(self, what: str) -> DataError:
        return _error(self._path, self.offset, what)

    def take(self, count: int) -> bytearray:
        """Return the next `count` bytes, or fewer where the stream ends before."""
        taken = bytearray()
        while len(taken) < count:
            limit = min(_CHUNK, count - len(taken))
            piece = self._packed(limit) if self._inflate else self._next(limit)
            if not piece:
                break
            taken += piece
            self.offset += len(piece)
        return taken

    def _packed(self, limit: int) -> bytes:
        """Return 1 to `limit` decompressed bytes, or none after a sound end of the member."""
        assert self._inflate is not None
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._next(_CHUNK)
            try:
                piece = self._inflate.decompress(packed, limit)
            except zlib.error as error:
                raise self.error(f"the gzip data for what follows is corrupt ({error})") from error
            if piece:
                return piece
            if not packed:
                raise self.error("the gzip data is cut off here")
        if self._inflate.unused_data or self._next(1):
            raise self.error("bytes follow the end of the gzip member")
        return b""

    def _next(self, limit: int) -> bytes:
        """Return 1 to `limit` bytes of the file as it lies on the disk, or none at its end."""
        ahead, self._ahead = self._ahead[:limit], self._ahead[limit:]
        return ahead or self._fetch(limit)

    def _fetch(self, limit: int) -> bytes:
        try:
            return self._file.read(limit)
        except OSError as error:
            raise self.error(f"reading failed ({error.strerror or error})") from error


def _read_header(stream: _Stream) -> tuple[np.dtype[Any], tuple[int, ...]]:
    magic = stream.take(4)
    if len(magic) < 4:
        raise stream.error("the file ends inside the magic number of an IDX file")
    if magic[:2] != b"\0\0":
        stream.offset = 0
        raise stream.error(f"an IDX file starts with 00 00, not {magic[:2].hex(' ')}")
    if magic[2] not in ITEM_TYPES:
        stream.offset = 2
        raise stream.error(f"0x{magic[2]:02X} is no IDX type of an item")
    if not 1 <= magic[3] <= MAX_DIMENSIONS:
        stream.offset = 3
        raise stream.error(f"{magic[3]} dimensions are not between 1 and {MAX_DIMENSIONS}")
    sizes = stream.take(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise stream.error(f"the file ends inside the sizes of its {magic[3]} dimensions")
    return ITEM_TYPES[magic[2]], struct.unpack(f">{magic[3]}I", sizes)


def _open(path: Path) -> BinaryIO:
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # opening a pipe would wait for a writer
        file = path.open("rb") if regular else None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise _error(path, 0, f"the file cannot be opened ({reason})") from error
    if file is None:
        raise _error(path, 0, "this is a directory or a device, not a regular file")
    return file


def _error(path: Path, offset: int, what: str) -> DataError:
    return DataError(f"{path}, byte {offset}: {what}.")
