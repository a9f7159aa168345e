"""Files in directories that may hold anything: reading and writing that no name can mislead.

Where a file is expected there may stand a link, a pipe, a device, or a file of a terabyte without
a byte in it. Reading opens regular files only, waits for nothing and has a bound; writing goes
through a name that nobody can foresee and that must be new.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

LARGEST = 1 << 26
"""The most bytes that are read at once: of a document or a line. A study of ten thousand trials
has lines of at most a few hundred kilobytes."""

SPARSE_BYTES, SPARSE_FACTOR = 1 << 26, 64
"""A file of more bytes than this that takes so many times less of the disk is full of holes. File
systems that compress save less on numbers."""

_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def open_regular(path: str | Path, flags: int = os.O_RDONLY, *, folder: int | None = None) -> int:
    """A descriptor of a regular file, opened without following a link or waiting for anybody.

    Args:
        path: the file; its name where `folder` is given.
        flags: as of `os.open`; with `O_CREAT` it is made with the modes of the process.
        folder: a descriptor of the directory that it is in.

    Raises:
        OSError: if it is missing, no regular file, or full of holes; its `strerror` says so.
    """
    try:
        descriptor = os.open(path, flags | _PLAIN, 0o666, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise OSError(error.errno, "it is a symbolic link", str(path)) from error
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP):
            raise OSError(error.errno, "it is no regular file", str(path)) from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        taken = getattr(status, "st_blocks", status.st_size) * 512
        if status.st_size > SPARSE_BYTES and taken * SPARSE_FACTOR < status.st_size:
            raise OSError(errno.EFBIG, "it is full of holes", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(
    path: str | Path, *, most: int | None = LARGEST, folder: int | None = None
) -> bytes:
    """All bytes of a regular file of at most `most` bytes; raises OSError as `open_regular`."""
    descriptor = open_regular(path, folder=folder)
    with open(descriptor, "rb", buffering=0):
        size = os.fstat(descriptor).st_size
        if most is not None and size > most:
            raise OSError(errno.EFBIG, f"it has {size} bytes, more than {most}", str(path))
        return read_range(descriptor, 0, size)


def read_range(descriptor: int, start: int, size: int) -> bytes:
    """The `size` bytes from `start` on, or fewer where the file ends before."""
    parts = []
    while size > 0 and (part := os.pread(descriptor, size, start)):
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `path` as a whole or not at all, and only return once it is on the disk.

    A link that stands there is replaced, not followed.
    """
    temporary = path.with_name(temporary_name(path.name))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PLAIN
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_name(name: str) -> str:
    """A name beside `name` that nobody can foresee: a dot before it, 16 random hex digits after."""
    return f".{name}.{secrets.token_hex(8)}"
