"""How records stand in the files of a study: strict JSON with a checksum, and float64 beside it.

Every document and every line is an object whose last member is the CRC-32 of all bytes before it,
so a flipped bit is noticed wherever it is. What the object must hold is said by the classes here
and in `records.py`, whose annotations `schema.py` compiles.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from zlib import crc32

import numpy as np
import orjson

from etascope.call import Call
from etascope.files import open_regular, read_range
from etascope.records import Burst, Evaluation, Failure, ProblemFacts, TrialId
from etascope.schema import Count, Natural, PositiveFloat, SchemaError, Whole, decoder

VERSION, UNSEALED = 3, 2
"""The format that is written, and the one before it, which is read: it has no checksums."""

STEPS = "steps.f64"
FLOAT = np.dtype("<f8")
BLOCK = 1 << 20  # bytes of numbers that are read at once
SEAL = b', "crc32": "%08x"}'
SEAL_BYTES = len(SEAL % 0)

Seed = Annotated[int, Whole(0, (1 << 64) - 1)]
Checksum = Annotated[int, Whole(0, (1 << 32) - 1)]


# What stands in the files ---------------------------------------------------------------------


class _Later(TypedDict, total=False):
    precision: str
    skip_unusable: bool


class PlanValues(_Later):
    """What `Plan.describe` gives."""

    steps: Count
    optimizer: str
    schedule: str
    clip: float | None
    accumulate: Count
    weight_decay: float | None
    rungs: list[Count]
    probe_every: Count
    rung_examples: Count


Environment = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Header:
    """What a study is of: study.json. `study` is its name, drawn by chance; see `identity`.

    `call` is the one that began it; version 0.1 kept none.
    """

    version: Literal[2, 3]
    reference: str | None
    problem: ProblemFacts
    plan: PlanValues
    environment: Environment
    factories: Mapping[str, Any] = field(default_factory=dict)
    call: Call | None = None
    study: str = ""


class Place(NamedTuple):
    """Where the numbers of a burst stand in steps.f64, how many, and their checksum."""

    at: Natural
    loss: Natural
    probe_metric: Natural
    crc32: Checksum


class Mark(NamedTuple):
    """A checkpoint as the journal knows it: how long it is, and its checksum."""

    bytes: Natural
    crc32: Checksum


class BurstLine(NamedTuple):
    """A burst; `state` is the mark of the checkpoint at `stop`, where one was saved."""

    kind: Literal["burst"]
    lr: PositiveFloat
    seed: Seed
    start: Natural
    stop: Natural
    steps: Place
    probe_steps: tuple[Natural, ...]
    evaluations: tuple[Evaluation, ...]
    failure: Failure | None
    seconds: float
    skipped: Natural = 0
    state: Mark | None = None


class RequestLine(NamedTuple):
    """Trials that are to be trained, and to which step; or another call that went on with it."""

    kind: Literal["request"]
    trials: tuple[tuple[PositiveFloat, Seed, Count], ...]
    call: Call | None = None


class SessionLine(NamedTuple):
    """Where a study went on, if that is another place than where it was begun."""

    kind: Literal["session"]
    environment: Environment


class FindingLine(NamedTuple):
    """The answer of a race; the class of it is in `search.finding`."""

    kind: Literal["finding"]
    finding: dict[str, Any]


# JSON -----------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """A copy of `value` that strict JSON can hold: non-finite numbers become strings.

    Half a surrogate pair, which a file name in a message can hold, is written out in ASCII.

    >>> to_json({"a": (1.5, float("inf"))})
    {'a': [1.5, 'inf']}
    """
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {to_json(str(key)): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    """`value` as strict JSON; reading a number gives the same bits again."""
    return json.dumps(to_json(value), allow_nan=False, ensure_ascii=False, indent=indent)


def loads(data: bytes | memoryview) -> dict[str, Any]:
    """The object in strict JSON; raises SchemaError for anything else."""
    try:
        values = orjson.loads(data)
    except ValueError as error:
        raise SchemaError(f"is no JSON ({str(error).partition(':')[0]})") from error
    if type(values) is not dict:
        raise SchemaError("is no JSON object")
    return values


def seal(values: Mapping[str, Any], indent: int | None = None) -> bytes:
    """`values` as a JSON object that ends with the checksum of what stands before.

    >>> unseal(seal({"a": 1}))
    {'a': 1}
    """
    body = dumps(values, indent).encode()[:-1].rstrip()
    return body + SEAL % crc32(body)


def unseal(data: bytes) -> dict[str, Any]:
    """The values that were sealed; raises SchemaError where a byte has changed."""
    body = memoryview(data)[:-SEAL_BYTES]
    if data[-SEAL_BYTES:] != SEAL % crc32(body):
        raise SchemaError("does not match its checksum")
    values = loads(data)
    del values["crc32"]
    return values


# Bursts ---------------------------------------------------------------------------------------


@lru_cache(1 << 16)  # a trial has many records, and comparing equals costs more than keeping one
def trial_id(lr: float, seed: int) -> TrialId:
    """The trial that a record names."""
    return TrialId(lr, seed)


def encode_burst(burst: Burst, at: int, state: Mark | None) -> tuple[dict[str, Any], bytes]:
    """The journal's line for a burst, as plain values, and its numbers, to stand from `at` on."""
    numbers = np.concatenate([burst.loss, burst.probe_metric], dtype=FLOAT).tobytes()
    place = Place(at, len(burst.loss), len(burst.probe_metric), crc32(numbers))
    record = {
        "kind": "burst",
        "lr": burst.trial.lr,
        "seed": burst.trial.seed,
        "start": burst.start,
        "stop": burst.stop,
        "steps": place._asdict(),
        "probe_steps": list(burst.probe_steps),
        "evaluations": [asdict(evaluation) for evaluation in burst.evaluations],
        "failure": None if burst.failure is None else asdict(burst.failure),
        "seconds": burst.seconds,
        "skipped": burst.skipped,
        "state": None if state is None else state._asdict(),
    }
    return record, numbers


class StepsFile:
    """The numbers in steps.f64, of which those are read that a record names, front to back."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / STEPS
        self._descriptor: int | None = None
        self._start, self._block, self._end = 0, b"", 0  # in bytes

    def __enter__(self) -> StepsFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self, at: int, count: int, checksum: int) -> np.ndarray:
        """`count` numbers from place `at` on; raises ValueError where they are not the ones."""
        start, size = at * FLOAT.itemsize, count * FLOAT.itemsize
        if not count and checksum == 0:
            return np.empty(0, FLOAT)
        if start < self._end:
            raise ValueError(f"{STEPS} would hold the numbers of two records at {at}")
        self._end = start + size
        if self._end > self._start + len(self._block):
            self._read_block(start, size)
        offset = start - self._start
        data = self._block[offset : offset + size]
        if len(data) != size or crc32(data) != checksum:
            raise ValueError(f"{STEPS} does not hold the numbers {at} to {at + count}")
        return np.frombuffer(data, FLOAT)

    def _read_block(self, start: int, size: int) -> None:
        try:
            if self._descriptor is None:
                self._descriptor = open_regular(self._path)
            held = os.fstat(self._descriptor).st_size - start
            if size > held:
                raise ValueError(f"{STEPS} ends before the numbers of this record")
            self._start = start
            self._block = read_range(self._descriptor, start, min(held, max(size, BLOCK)))
        except OSError as error:
            raise ValueError(f"{STEPS} cannot be read: {error.strerror}") from error


_burst_line = decoder(BurstLine)


def decode_burst(record: Mapping[str, Any], steps: StepsFile) -> tuple[Burst, Mark | None]:
    """The burst of a journal line and the mark of its checkpoint; raises ValueError for others."""
    line: BurstLine = _burst_line(record)
    place, start, stop, failure = line.steps, line.start, line.stop, line.failure
    # A failure can stand after the loss of a step and before its update.
    beyond = place.loss - (stop - start)
    if stop < start or not 0 <= beyond <= (failure is not None):
        raise ValueError(f"it has {place.loss} losses for the steps {start} to {stop}")
    probes = line.probe_steps
    if place.probe_metric != len(probes):
        raise ValueError(f"it has {place.probe_metric} values for {len(probes)} probes")
    inside = not probes or (start <= probes[0] and probes[-1] <= stop)
    for event in line.evaluations:
        inside = inside and start <= event.step <= stop
    if not inside or (failure is not None and not start <= failure.step <= stop):
        raise ValueError(f"it tells of steps outside of {start} to {stop}")
    numbers = steps.read(place.at, place.loss + place.probe_metric, place.crc32)
    burst = Burst(
        trial=trial_id(line.lr, line.seed),
        start=start,
        stop=stop,
        loss=numbers[: place.loss],
        probe_steps=array("q", probes),
        probe_metric=numbers[place.loss :],
        evaluations=line.evaluations,
        failure=failure,
        seconds=line.seconds,
        skipped=line.skipped,
    )
    return burst, line.state
