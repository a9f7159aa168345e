"""The files of a study directory: a header written once, and an append-only journal.

    study.json       what is trained and how; written once, atomically
    journal.jsonl    one record a line: a request for trials, or a burst of training
    checkpoints/     states of the trials that may go on (checkpoints.py)
    study.lock       held by the one writer while it writes

JSON is strict: numbers that are not finite are the strings "nan", "inf" and "-inf". A line is
written and flushed to the disk as a whole; a torn last line (a kill, a full disk) is dropped when
reading and cut off before the next writer appends.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from etascope.errors import StudyError
from etascope.records import Burst, Evaluation, Failure, TrialId

VERSION = 1
HEADER, JOURNAL, LOCK = "study.json", "journal.jsonl", "study.lock"


# JSON values ----------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """A copy of `value` that strict JSON can hold: non-finite numbers become strings.

    >>> to_json({"a": (1.5, float("inf"))})
    {'a': [1.5, 'inf']}
    """
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    """`value` as strict JSON."""
    return json.dumps(to_json(value), allow_nan=False, ensure_ascii=False, indent=indent)


def _loads(text: str | bytes) -> Any:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not strict JSON")

    return json.loads(text, parse_constant=refuse)


def _floats(values: Sequence[float | str]) -> tuple[float, ...]:
    return tuple(map(float, values))


def _maybe(value: float | str | None) -> float | None:
    return None if value is None else float(value)


def encode_burst(burst: Burst) -> dict[str, Any]:
    """The journal's line for a burst, as plain values."""
    record = asdict(burst)
    trial = record.pop("trial")
    return {"kind": "burst", "lr": trial["lr"], "seed": trial["seed"], **record}


def decode_burst(record: Mapping[str, Any]) -> Burst:
    """The burst of a journal line; raises KeyError, TypeError or ValueError for another record."""
    failure = record["failure"]
    return Burst(
        trial=TrialId(float(record["lr"]), int(record["seed"])),
        start=int(record["start"]),
        stop=int(record["stop"]),
        loss=_floats(record["loss"]),
        probe_steps=tuple(map(int, record["probe_steps"])),
        probe_metric=_floats(record["probe_metric"]),
        evaluations=tuple(
            Evaluation(
                step=int(e["step"]),
                split=e["split"],
                loss=float(e["loss"]),
                metric=_maybe(e["metric"]),
                examples=int(e["examples"]),
                correct=None if e["correct"] is None else int(e["correct"]),
                batch_losses=_floats(e["batch_losses"]),
            )
            for e in record["evaluations"]
        ),
        failure=None if failure is None else Failure(**failure),
        seconds=float(record["seconds"]),
    )


# Reading --------------------------------------------------------------------------------------


def read_header(directory: Path) -> dict[str, Any]:
    """The header of a study; raises StudyError if there is none that can be read."""
    path = directory / HEADER
    try:
        header = _loads(path.read_bytes())
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
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    record = _loads(line)
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
                self._cut_torn_line()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
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

    def append(self, burst: Burst) -> None:
        """Record a burst; it is on the disk when this returns."""
        self._append(encode_burst(burst))

    def _append(self, record: Mapping[str, Any]) -> None:
        with writing(self.directory, "write the journal"):
            end = os.fstat(self._file.fileno()).st_size
            rest = memoryview(dumps(record).encode() + b"\n")
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)
                raise

    def _cut_torn_line(self) -> None:
        path = self.directory / JOURNAL
        with path.open("rb") as file:
            end = 0
            for line in file:
                if line.endswith(b"\n"):
                    end += len(line)
        if end != path.stat().st_size:
            self._file.truncate(end)
