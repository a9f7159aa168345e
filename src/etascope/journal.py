"""The files of a study directory: a header written once, and an append-only journal.

    study.json       what is trained and how, and the name of the study; written once, atomically
    journal.jsonl    one record a line: rules of a race, a request for trials, a burst, a finding
    steps.f64        what bursts measured step by step; float64, little-endian, appended before
                     the line that names its place, counts and CRC-32
    checkpoints/     states of the trials that may go on (checkpoints.py)
    study.lock       held by the one writer while it writes (lock.py)

JSON is strict: numbers that are not finite are the strings "nan", "inf" and "-inf". A record is
its line, written and flushed to the disk as a whole after its numbers; numbers that no line names
are no record. A torn last line (a kill, a full disk) is dropped when reading and cut off before
the next writer appends. Neither opening to write nor appending takes longer for a long journal.

A line names its study and its own number and ends with a checksum (`encoding.seal`), so a line
that was changed, moved, lost or brought from elsewhere is noticed. Lines of format 2 have none of
these; a study that was begun in it keeps them, and every line from the first sealed one on is
sealed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from etascope.appending import BLOCK, AppendedFile
from etascope.encoding import (
    FLOAT,
    STEPS,
    UNSEALED,
    VERSION,
    Header,
    Mark,
    encode_burst,
    loads,
    seal,
    unseal,
)
from etascope.errors import StudyError, UsageError
from etascope.files import LARGEST, open_regular, read_regular, write_atomically
from etascope.lock import take_lock
from etascope.records import Burst, TrialId
from etascope.schema import SchemaError, decode

HEADER, JOURNAL, FOLDER = "study.json", "journal.jsonl", "checkpoints"


# Reading --------------------------------------------------------------------------------------


class StudyName(NamedTuple):
    """What the lines of a study's files call it, and whether all of them do."""

    name: str
    sealed: bool


def read_header(directory: Path) -> tuple[Header, StudyName]:
    """The header of a study and its name; raises StudyError if there is none that can be read."""
    path = directory / HEADER
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise StudyError(f"there is no study in {directory}; name the folder of one") from None
    except OSError as error:
        raise StudyError(f"{path} cannot be read ({error.strerror})") from error
    try:
        version = loads(data).get("version")
    except SchemaError as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    try:
        if version not in (UNSEALED, VERSION):
            raise StudyError(
                f"{path} is no study of format {UNSEALED} or {VERSION}; this version cannot read it"
            )
        sealed = version == VERSION
        header = decode(Header, unseal(data) if sealed else loads(data))
        if bool(header.study) != sealed:
            raise SchemaError("has no name" if sealed else "has a name, which its format does not")
    except SchemaError as error:
        raise StudyError(f"{path} is damaged: {error}") from error
    # What has no name of its own is known by its bytes, which never change.
    return header, StudyName(header.study or hashlib.sha256(data).hexdigest()[:32], sealed)


class Line(NamedTuple):
    """A line of a journal: its number from 1, and its record, or what is wrong with it.

    `sealed` tells whether it has a checksum, so that the lines after it must have one.
    """

    number: int
    record: dict[str, Any]
    sealed: bool
    damage: str = ""


def read_lines(directory: Path, name: StudyName) -> Iterator[Line]:
    """The lines of a journal in order, without a torn last one.

    Raises:
        StudyError: if the file is missing or cannot be read.
    """
    path = directory / JOURNAL
    try:
        descriptor = open_regular(path)
        with open(descriptor, "rb", buffering=BLOCK) as file:
            number, sealed = 0, name.sealed
            while data := file.readline(LARGEST):
                number += 1
                if not data.endswith(b"\n"):
                    if len(data) >= LARGEST:
                        yield Line(number, {}, sealed, "it is too long")
                        return
                    whole = _whole(data)
                    if not whole and _begins(data, name, number):
                        number -= 1
                        break
                    data = whole or data
                line = _read_line(data, number, name, sealed)
                sealed = line.sealed
                yield line
        if number == 0 and (directory / STEPS).lstat().st_size:
            raise StudyError(f"{path} is empty, but {STEPS} is not: it was cut or replaced")
    except FileNotFoundError:
        raise StudyError(f"{path} is missing; a study needs its journal") from None
    except OSError as error:
        raise StudyError(f"{path} cannot be read ({error.strerror})") from error


def _read_line(data: bytes, number: int, name: StudyName, sealed: bool) -> Line:
    """A line that ends with a newline; `sealed` tells whether it must have a checksum."""
    try:
        if not sealed:
            record = loads(data)
            if "crc32" not in record:
                return Line(number, record, sealed=False)
        record = unseal(data[:-1])
        if record.pop("study", None) != name.name:
            raise SchemaError("belongs to another study")
        if record.pop("line", None) != number:
            raise SchemaError("stands in another place than it was written to")
    except SchemaError as error:
        return Line(number, {}, sealed, str(error))
    return Line(number, record, sealed=True)


def _whole(tail: bytes) -> bytes:
    """The whole line in what follows the last newline; empty where it was torn.

    A line can be whole there but for its newline, which is missing or has changed.
    """
    for data in (tail, tail[:-1]):
        try:
            unseal(data)
        except SchemaError:
            continue
        return data + b"\n"
    return b""


def _begins(tail: bytes, name: StudyName, number: int) -> bool:
    """Whether a torn line, maybe with no byte of it, is one of this study."""
    begun = b'{"study": "%s", "line": %d, ' % (name.name.encode(), number)
    torn = tail.rstrip(b"\0")  # some file systems fill with zeros what was not written
    return torn[: len(begun)] == begun[: len(torn)] or (not name.sealed and torn[:1] == b"{")


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


class Journal:
    """The one writer of a study directory; use it as a context manager.

    Nothing in the directory is made or changed before it is known to be a study's or free for one.

    Attributes:
        directory: of the study.
        header: of the study that is there, or None before `write_header`.

    Raises:
        UsageError: if the directory holds files of a study, but no header.
        StudyError: when another process writes to this study, its header or the end of its journal
            are not as they were written, or the directory cannot be read or written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.header: Header | None = None
        self._held = ExitStack()
        _look(directory)
        with writing(directory, "create the study"):
            directory.mkdir(parents=True, exist_ok=True)
            self._held.callback(take_lock(directory))
        try:
            known = _look(directory)
            if known is not None:
                self.header, self._name = known
                self._open()
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def write_header(self, header: Mapping[str, Any]) -> None:
        """Write study.json, once for the life of the study, and make its other files."""
        values = {"version": VERSION, "study": os.urandom(16).hex(), **header}
        with writing(self.directory, "write the header"):
            for name in (STEPS, JOURNAL):
                os.close(open_regular(self.directory / name, os.O_WRONLY | os.O_CREAT))
            write_atomically(self.directory / HEADER, seal(values, indent=1))
        self.header, self._name = read_header(self.directory)
        self._open()

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

    def move(self, environment: Mapping[str, Any]) -> None:
        """Record that the study goes on in another environment than it was begun in."""
        self._append({"kind": "session", "environment": environment})

    def append(self, burst: Burst, state: Mark | None = None) -> None:
        """Record a burst, and the checkpoint at its end; it is on the disk when this returns."""
        with writing(self.directory, "write the journal"):
            record, numbers = encode_burst(burst, self._steps.end // FLOAT.itemsize, state)
            self._steps.append(numbers)
        self._append(record)

    def check(self) -> None:
        """Raise StudyError if somebody else has replaced, cut or continued the files."""
        self._steps.check()
        self._lines.check()

    def _append(self, record: Mapping[str, Any]) -> None:
        with writing(self.directory, "write the journal"):
            line = seal({"study": self._name.name, "line": self._next, **record})
            self._lines.append(line + b"\n")
        self._next += 1

    def _open(self) -> None:
        with writing(self.directory, "open the journal"):
            for name in (JOURNAL, STEPS):
                if not os.path.lexists(self.directory / name):
                    raise StudyError(f"{self.directory / name} is missing; name another --out")
            self._lines = AppendedFile(self.directory / JOURNAL)
            self._held.callback(self._lines.close)
            self._steps = AppendedFile(self.directory / STEPS)
            self._held.callback(self._steps.close)
            self._next = self._mend_end()
            self._steps.cut(self._steps.end // FLOAT.itemsize * FLOAT.itemsize)

    def _mend_end(self) -> int:
        """Cut a torn last line, if it is one of ours, and return the number of the next line."""
        path = self.directory / JOURNAL
        end = self._lines.end_of_last_line()
        last, number = self._lines.last_line(end), 0
        tail = self._lines.read(end, min(self._lines.end - end, LARGEST))
        if last:
            number = self._number(last)
        elif not tail and self._steps.end:
            raise StudyError(f"{path} is empty, but {STEPS} is not: it was cut or replaced")
        line = _whole(tail)
        if line:
            self._lines.cut(end + len(line) - 1)
            self._lines.append(b"\n")
            return number + 2
        if not _begins(tail, self._name, number + 1):
            raise StudyError(f"{path} does not end with a line of this study; name another --out")
        self._lines.cut(end)
        return number + 1

    def _number(self, last: bytes) -> int:
        """The number of the last whole line, which must be one of this study."""
        try:
            number = unseal(last[:-1]).get("line")
        except SchemaError:  # it has none in the older format
            number = None
        if type(number) is not int:
            number = self._lines.count_lines()
        damage = _read_line(last, number, self._name, self._name.sealed).damage
        if damage:
            path = self.directory / JOURNAL
            raise StudyError(
                f"{path}, line {number} is damaged: {damage}; name another --out to train anew"
            )
        return number


def _look(directory: Path) -> tuple[Header, StudyName] | None:
    """The header of the study in a directory; None where there is none and one can be begun.

    Raises:
        UsageError: if files of a study are there and no header.
        StudyError: if the header cannot be read.
    """
    if os.path.lexists(directory / HEADER):
        return read_header(directory)
    for name in (JOURNAL, STEPS, FOLDER):
        if not _vacant(directory / name, folder=name == FOLDER):
            raise UsageError(
                f"{directory} holds {name} but no {HEADER}: it is no study that could go on, "
                "and nothing in it was touched; name another --out"
            )
    return None


def _vacant(path: Path, *, folder: bool) -> bool:
    """Whether nothing stands at `path`, or an empty file or folder without a link."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return True
    if folder:
        return stat.S_ISDIR(status.st_mode) and not any(path.iterdir())
    return stat.S_ISREG(status.st_mode) and status.st_size == 0
