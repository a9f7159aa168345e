"""What a study keeps of the calls that made it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from golden_studies import STUDIES, line
from small import line_problem

import etascope as es
from etascope.call import Call
from etascope.errors import UsageError
from etascope.journal import JOURNAL


def test_a_study_keeps_what_was_asked_for_and_each_call_once(tmp_path: Path) -> None:
    problem, out = line_problem(), tmp_path / "a"
    plain = {"steps": 20, "optimizer": "sgd", "engine": "serial"}
    rungs, both = (r for r in (5, 7)), [[0.1, 10], [0.01, 20]]
    es.sweep(problem, {0.1: 10, 0.01: 20}, seeds=iter([0, 1]), rungs=rungs, out=out, **plain)  # type: ignore[arg-type]
    first = Call("sweep", {**plain, "lrs": both, "seeds": 2, "rungs": [5, 7]})
    assert es.open_study(out).calls == (first,)
    before = (out / JOURNAL).read_bytes()
    es.sweep(problem, {0.1: 10, 0.01: 20}, seeds=2, rungs=(7, 5), out=out, **plain)  # type: ignore[arg-type]
    assert (out / JOURNAL).read_bytes() == before
    study = es.sweep(problem, [0.1], seeds=[0], rungs=(7, 5), out=out, **plain)  # type: ignore[arg-type]
    second = Call("sweep", {**plain, "lrs": [0.1], "rungs": [5, 7]})
    assert study.calls == es.open_study(out).calls == (first, second)


def test_a_find_keeps_its_own_call(tmp_path: Path) -> None:
    finding = es.find(line_problem(), steps=np.int64(40), budget=3, optimizer="sgd", out=tmp_path)
    assert es.open_study(finding.study).calls == (
        Call("find", {"steps": 40, "optimizer": "sgd", "budget": 3.0}),
    )


def test_a_study_of_before_keeps_none_and_goes_on(tmp_path: Path) -> None:
    out = shutil.copytree(STUDIES / "sweep", tmp_path / "sweep")
    assert es.open_study(out).calls == ()
    options = {"steps": 40, "seeds": 2, "optimizer": "sgd", "engine": "serial", "rungs": (10, 20)}
    study = es.sweep(line(), (0.03, 0.3, 1e30), out=out, **options)  # type: ignore[arg-type]
    assert [call.name for call in study.calls] == ["sweep"]


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_epochs_and_accumulate_of_numpy_are_whole_numbers(kind: type, tmp_path: Path) -> None:
    study = es.sweep(line_problem(), [0.1], epochs=kind(2), accumulate=kind(2), out=tmp_path)
    assert study.horizon == 8
    assert study.calls[0].arguments["epochs"] == 2
    for wrong in (True, 2.0, 0, np.float64(2), "2"):
        with pytest.raises(UsageError, match="epochs is"):
            es.sweep(line_problem(), [0.1], epochs=wrong, out=tmp_path / "b")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="accumulate is"):
            es.sweep(line_problem(), [0.1], epochs=1, accumulate=wrong, out=tmp_path / "b")  # type: ignore[arg-type]
