"""The built-in experiment as TensorFlow trains it, to be drawn behind our own curves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from etascope.reporting.thinning import Series, finite, thin
from etascope.study import Study

REFERENCE = Path(__file__).parent / "reference" / "mnist_tensorflow.json"


class ReferenceCurve(NamedTuple):
    """One training of the same network elsewhere, measured the same way."""

    made_by: str
    lr: float
    steps: int
    loss: Series
    accuracy: Series
    test_accuracy: float | None


class Reference(NamedTuple):
    """Trainings by another framework, and where they come from."""

    provenance: tuple[tuple[str, str], ...]
    curves: tuple[ReferenceCurve, ...]


def reference_curves(study: Study) -> Reference | None:
    """The TensorFlow trainings of the built-in experiment, where the study is that experiment.

    Its own network, data, horizon and plain Adam; else None, and also where the file is absent.
    """
    plain = {"optimizer": "adam", "schedule": "constant", "clip": None, "accumulate": 1}
    same = study.problem.name == study.reference == "mnist-cnn"
    if not same or any(study.plan.get(k, v) != v for k, v in plain.items()):
        return None
    try:
        document = json.loads(REFERENCE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    source = document["provenance"]
    made_by = f"{source.get('framework', 'TensorFlow')} {source.get('version', '')}".strip()
    found = [
        ReferenceCurve(
            made_by=made_by,
            lr=float(curve["lr"]),
            steps=int(curve["steps"]),
            loss=_series(range(len(curve["loss"])), curve["loss"]),
            accuracy=_series(curve["accuracy_steps"], curve["accuracy"]),
            test_accuracy=finite(curve["test_accuracy"]),
        )
        for curve in document["curves"]
        if int(curve["steps"]) == study.horizon
    ]
    provenance = tuple((str(k), str(v)) for k, v in source.items())
    return Reference(provenance, tuple(found)) if found else None


def behind(lr: float, reference: Reference | None) -> ReferenceCurve | None:
    """The training elsewhere at the rate `lr`, if there is one."""
    found = reference.curves if reference else ()
    return next((curve for curve in found if math.isclose(curve.lr, lr, rel_tol=1e-6)), None)


def _series(steps: Sequence[int], values: Sequence[float | str | None]) -> Series:
    return thin(
        np.asarray(steps, dtype=np.int64),
        np.array([math.nan if v is None else float(v) for v in values]),
    )
