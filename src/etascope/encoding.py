"""How records stand in the files of a study: strict JSON, and float64 for what each step gave."""

from __future__ import annotations

import json
import math
import operator
from array import array
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from etascope.records import Burst, Evaluation, Failure, TrialId

STEPS = "steps.f64"
FLOAT = np.dtype("<f8")


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


@lru_cache(1 << 16)  # a trial has many records, and comparing equals costs more than keeping one
def trial_id(lr: float, seed: int) -> TrialId:
    """The trial that a record names; raises TypeError or ValueError where it names none."""
    return TrialId(float(lr), operator.index(seed))  # beyond 64 bits the parser gives a float


def encode_burst(burst: Burst, at: int) -> tuple[dict[str, Any], bytes]:
    """The journal's line for a burst, as plain values, and its numbers, to stand from `at` on."""
    numbers = np.concatenate([burst.loss, burst.probe_metric], dtype=FLOAT).tobytes()
    record = {
        "kind": "burst",
        "lr": burst.trial.lr,
        "seed": burst.trial.seed,
        "start": burst.start,
        "stop": burst.stop,
        "steps": {
            "at": at,
            "loss": len(burst.loss),
            "probe_metric": len(burst.probe_metric),
            "crc32": crc32(numbers),
        },
        "probe_steps": list(burst.probe_steps),
        "evaluations": [asdict(evaluation) for evaluation in burst.evaluations],
        "failure": None if burst.failure is None else asdict(burst.failure),
        "seconds": burst.seconds,
        "skipped": burst.skipped,
    }
    return record, numbers


class StepsFile:
    """The numbers in steps.f64, read when a record first asks for them."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / STEPS
        self._numbers = np.empty(0, FLOAT)

    def read(self, at: int, count: int, checksum: int) -> np.ndarray:
        """`count` numbers from place `at` on; raises ValueError where they are not the ones."""
        if at + count > len(self._numbers):
            try:
                self._numbers = np.fromfile(self._path, FLOAT)
            except OSError as error:
                raise ValueError(f"{STEPS} cannot be read: {error.strerror}") from error
        numbers = self._numbers[at : at + count]
        if at < 0 or len(numbers) != count or crc32(numbers.data) != checksum:
            raise ValueError(f"{STEPS} does not hold the numbers {at} to {at + count}")
        return numbers


def decode_burst(record: Mapping[str, Any], steps: StepsFile) -> Burst:
    """The burst of a journal line; raises KeyError, TypeError or ValueError for another record."""
    failure, place = record["failure"], record["steps"]
    losses = place["loss"]
    numbers = steps.read(place["at"], losses + place["probe_metric"], place["crc32"])
    return Burst(
        trial=trial_id(record["lr"], record["seed"]),
        start=int(record["start"]),
        stop=int(record["stop"]),
        loss=numbers[:losses],
        probe_steps=array("q", record["probe_steps"]),
        probe_metric=numbers[losses:],
        evaluations=tuple([_evaluation(e) for e in record["evaluations"]]),
        failure=None if failure is None else Failure(**failure),
        seconds=float(record["seconds"]),
        skipped=int(record.get("skipped", 0)),
    )


def _evaluation(record: Mapping[str, Any]) -> Evaluation:
    metric, correct = record["metric"], record["correct"]
    return Evaluation(
        step=int(record["step"]),
        split=record["split"],
        loss=float(record["loss"]),
        metric=None if metric is None else float(metric),
        examples=int(record["examples"]),
        correct=None if correct is None else int(correct),
        batch_losses=tuple(map(float, record["batch_losses"])),
        batch_metrics=tuple(map(float, record.get("batch_metrics", ()))),
    )
