"""The files of a study directory: a header written once, and an append-only journal.

    study.json       what is trained and how; written once, atomically
    journal.jsonl    one record a line: rules of a race, a request for trials, a burst, a finding
    steps.f64        what bursts measured step by step; float64, little-endian, appended before
                     the line that names its place, counts and CRC-32
    checkpoints/     states of the trials that may go on (checkpoints.py)
    study.lock       held by the one writer while it writes

JSON is strict: numbers that are not finite are the strings "nan", "inf" and "-inf". A record is
its line, written and flushed to the disk as a whole after its numbers; numbers that no line names
are no record. A torn last line (a kill, a full disk) is dropped when reading and cut off before
the next writer appends. Neither opening to write nor appending takes longer for a long journal.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, Any

import orjson

from etascope.encoding import FLOAT, STEPS, dumps, encode_burst
from etascope.errors import StudyError
from etascope.records import Burst, TrialId

VERSION = 2
HEADER, JOURNAL, LOCK = "study.json", "journal.jsonl", "study.lock"
BLOCK = 1 << 18  # bytes read at once


# Reading --------------------------------------------------------------------------------------


def read_header(directory: Path) -> dict[str, Any]:
    """The header of a study; raises StudyError if there is none that can be read."""
    path = directory / HEADER
    try:
        header = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise StudyError(f"there is no study in {directory}; name the folder of one") from None
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read ({error})") from error
    if not isinstance(header, dict) or header.get("version") != VERSION:
        raise StudyError(f"{path} is no study of format {VERSION}; this version cannot read it")
    return header


def read_records(directory: Path) -> Iterator[dict[str, Any]]:
    """The records of a journal in order, without a torn last line.

    Raises:
        StudyError: for a line before the last one that is no record, naming file and line.
    """
    path = directory / JOURNAL
    try:
        with path.open("rb", buffering=BLOCK) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    record = orjson.loads(line)
                except ValueError as error:
                    raise StudyError(f"{path}, line {number} is damaged ({error})") from error
                if not isinstance(record, dict):
                    raise StudyError(f"{path}, line {number} is no record")
                yield record
    except FileNotFoundError:
        return
    except OSError as error:
        raise StudyError(f"{path} cannot be read ({error.strerror})") from error


# Writing --------------------------------------------------------------------------------------


@contextmanager
def writing(directory: Path, action: str) -> Iterator[None]:
    """Turn an operating system's refusal (full disk, no permission) into one clear StudyError."""
    try:
        yield
    except OSError as error:
        raise StudyError(
            f"cannot {action} in {directory}: {error.strerror or error}; "
            "what was written before stays readable, and the same command goes on from there"
        ) from error


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `path` as a whole or not at all, and only return once it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Journal:
    """The one writer of a study directory; use it as a context manager.

    Raises:
        StudyError: when another process writes to this study, or the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with writing(directory, "create the study"):
            directory.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = (directory / LOCK).open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise StudyError(
                f"another process is writing to the study in {directory}; "
                "wait for it, stop it, or choose another --out"
            ) from None
        try:
            with writing(directory, "open the journal"):
                self._file = (directory / JOURNAL).open("ab", buffering=0)
                self._steps = (directory / STEPS).open("ab", buffering=0)
                self._cut_torn_line()
                whole = os.fstat(self._steps.fileno()).st_size // FLOAT.itemsize
                self._steps.truncate(whole * FLOAT.itemsize)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._steps.close()
        self._file.close()
        self._lock.close()

    def write_header(self, header: Mapping[str, Any]) -> None:
        """Write study.json, once for the life of the study."""
        with writing(self.directory, "write the header"):
            text = dumps({"version": VERSION, **header}, indent=1)
            write_atomically(self.directory / HEADER, text.encode())

    def request(self, targets: Mapping[TrialId, int]) -> None:
        """Record that these trials are to be trained to these steps."""
        trials = [[trial.lr, trial.seed, target] for trial, target in targets.items()]
        self._append({"kind": "request", "trials": trials})

    def called(self, call: Mapping[str, Any]) -> None:
        """Record another call than the one that began the study: a request for no trial yet."""
        self._append({"kind": "request", "trials": [], "call": call})

    def aim(self, rules: Mapping[str, Any]) -> None:
        """Record the rules of the race that is trained for from here on."""
        self._append({"kind": "race", **rules})

    def conclude(self, finding: Mapping[str, Any]) -> None:
        """Record the answer that the race came to."""
        self._append({"kind": "finding", "finding": finding})

    def append(self, burst: Burst) -> None:
        """Record a burst; it is on the disk when this returns."""
        with writing(self.directory, "write the journal"):
            place = os.fstat(self._steps.fileno()).st_size // FLOAT.itemsize
            record, numbers = encode_burst(burst, place)
            _append(self._steps, numbers)
        self._append(record)

    def _append(self, record: Mapping[str, Any]) -> None:
        with writing(self.directory, "write the journal"):
            _append(self._file, dumps(record).encode() + b"\n")

    def _cut_torn_line(self) -> None:
        """Cut what stands after the last newline, looking for it from the end."""
        size = end = os.fstat(self._file.fileno()).st_size
        with (self.directory / JOURNAL).open("rb") as file:
            while end:
                start = max(0, end - BLOCK)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
        if end != size:
            self._file.truncate(end)


def _append(file: FileIO, data: bytes) -> None:
    """Append `data` as a whole or not at all, and only return once it is on the disk."""
    end = os.fstat(file.fileno()).st_size
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except BaseException:  # Ctrl-C, too, must not leave half a line in the middle
        file.truncate(end)
        raise
