"""A file that one process appends to, and that it notices others to have changed."""

from __future__ import annotations

import os
from pathlib import Path

from etascope.errors import StudyError
from etascope.files import LARGEST, open_regular, read_range

BLOCK = 1 << 18  # bytes read at once


class AppendedFile:
    """A file of which this process alone writes the end; descriptor and length are kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = open_regular(path, os.O_RDWR | os.O_APPEND)
        self.end = os.fstat(self._descriptor).st_size

    def close(self) -> None:
        os.close(self._descriptor)

    def append(self, data: bytes) -> None:
        """Append `data` as a whole or not at all, and only return once it is on the disk."""
        self.check()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except BaseException:  # Ctrl-C, too, must not leave half a line in the middle
            os.ftruncate(self._descriptor, self.end)
            raise
        self.end += len(data)

    def check(self) -> None:
        """Raise StudyError unless the file is the one that was opened, and as long as it was."""
        now = os.fstat(self._descriptor)
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (now.st_dev, now.st_ino):
            happened = "was replaced"
        elif now.st_size != self.end:
            happened = "was cut" if now.st_size < self.end else "was written to by somebody else"
        else:
            return
        raise StudyError(
            f"{self._path} {happened} while this study was trained; nothing more is written to it"
        )

    def cut(self, end: int) -> None:
        """Cut what stands after `end`."""
        if end != self.end:
            os.ftruncate(self._descriptor, end)
            self.end = end

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on."""
        return read_range(self._descriptor, start, size)

    def end_of_last_line(self, end: int | None = None) -> int:
        """Where the last newline before `end` ends, looked for from the end; 0 if there is none."""
        end = self.end if end is None else end
        while end:
            start = max(0, end - BLOCK)
            newline = self.read(start, end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0

    def last_line(self, end: int) -> bytes:
        """The line that ends at `end`, with its newline."""
        start = self.end_of_last_line(max(end - 1, 0))
        return self.read(start, min(end - start, LARGEST))

    def count_lines(self) -> int:
        """How many newlines the file has."""
        blocks = range(0, self.end, BLOCK)
        return sum(self.read(start, BLOCK).count(b"\n") for start in blocks)
