"""The machinery of the trust benchmark, on a task that takes a moment."""

import json
import math

import numpy as np
import pytest
from run import fresh_training, gather, measure
from summary import (
    Truth,
    by_task,
    finding_column,
    interval,
    read,
    read_truth,
    sweep_bands,
    truth_of,
)
from tasks import DEVELOPMENT, JUDGED, TRUTH_SEEDS, Task
from truth import digest

import etascope as es

TINY = Task("quadratic", "sgd", 40)
LOGS = np.array([-3.0, -2.0, -1.0, 0.0])
LOSSES, FAILED = np.array([1.0, 0.2, 0.6, 2.0]), np.array([0.0, 0.0, 0.2, 1.0])
TRUTH = Truth(LOGS, LOSSES, FAILED, 2.0, np.array([0.09, 0.0, 0.18, 0.0]))


def test_regret_is_a_share_of_what_there_is_to_learn():
    assert TRUTH.regret(1e-2) == 0
    assert TRUTH.regret(1.0) == 1
    assert TRUTH.regret(10**-1.5) == pytest.approx(0.2 / 1.8)
    assert TRUTH.regret(None) == TRUTH.regret(math.nan) == TRUTH.regret(-1.0) == 1
    assert TRUTH.regret(1e9) == 1


def test_what_a_regret_is_at_least_allows_for_the_error_of_the_truth():
    assert TRUTH.surely(1e-2) == 0
    assert TRUTH.surely(1e-3) == pytest.approx((0.8 - 0.09) / 1.8)


def test_the_edge_lies_where_half_of_the_seeds_fail():
    assert TRUTH.edge == pytest.approx(-1 + 0.3 / 0.8)
    assert TRUTH._replace(failed=np.zeros(4)).edge is None


def test_the_band_of_a_sweep_is_judged_by_the_other_seeds(tmp_path, monkeypatch):
    lrs, losses = [1e-3, 1e-2, 1e-1], [1.0, 0.2, 1.0]
    trials = [
        {"lr": lr, "loss": loss + level, "failed": False}
        for lr, loss in zip(lrs, losses, strict=True)
        for level in (0.0, 0.1, 0.2)
    ]
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "a.json").write_text(json.dumps({"chance": 2.0, "trials": trials}))
    monkeypatch.setattr("summary.DATA", tmp_path)
    # Seeds differ in level only: every one of them knows what the others say.
    for seeds in (1, 2):
        assert sweep_bands(seeds, 1.0) == {"holds": [True] * 3, "inside": [True] * 3}
    wide = sweep_bands(1, 40.0)
    assert wide == {"holds": [True] * 3, "inside": [False] * 3}


def test_one_seed_says_nothing_of_the_error():
    one = truth_of(LOGS, LOSSES[:, None], np.zeros((4, 1)), 2.0)
    assert not one.errors.any()
    assert one.best == -2


def test_the_tables_need_no_training_and_cover_every_task():
    truths, runs = read()
    assert set(truths) == set(JUDGED) == {run["task"] for run in runs}
    assert all(0 <= run["regret"] <= 1 for run in runs)
    seeds = {(run["method"], run["task"], run["seed"]) for run in runs}
    assert len(seeds) == len(runs)


def test_no_judged_task_was_developed_on_and_no_method_trains_with_the_seeds_of_the_truth():
    assert not set(JUDGED) & set(DEVELOPMENT)
    assert len(JUDGED) >= 8
    assert min(TRUTH_SEEDS) > 10 * 5 + 5


def test_the_interval_holds_the_mean_of_what_it_is_given():
    low, high = interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert low < 2.5 < high
    assert by_task([{"task": "a"}, {"task": "a"}, {"task": "b"}], lambda run: 1.0).tolist() == [
        1,
        1,
    ]


def test_a_truth_is_digested_from_its_study_and_read_back(tmp_path):
    study = es.sweep(TINY.problem, [0.01, 0.1, 1.0], seeds=2, rungs=[40], out=tmp_path, **TINY.plan)
    (tmp_path / "truth.json").write_text(json.dumps(digest(TINY, study)))
    found = read_truth(tmp_path / "truth.json")
    assert found.best == -1
    assert found.failed.tolist() == [0, 0, 1]
    assert found.losses[2] == found.chance


@pytest.mark.parametrize("method", ["etascope find, budget 2", "grid of 4", "default 1e-3"])
def test_a_method_is_run_and_kept(tmp_path, method, monkeypatch):
    monkeypatch.setattr("methods.STUDIES", tmp_path / "studies")
    result = measure(method, TINY, seed=1)
    assert result["error"] is None
    assert 1e-5 <= result["lr"] <= 10
    assert 0 <= result["cost"] <= 4
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one.json").write_text(json.dumps(result, default=str))
    monkeypatch.setattr("run.DATA", tmp_path)
    gather(tmp_path / "runs")
    kept = json.loads((tmp_path / "results.jsonl").read_text())
    assert kept["lr"] == result["lr"]
    if "find" in method:
        kept["regret"] = 0.0
        assert finding_column({TINY.name: TRUTH}, [kept])["runs"] == "1"


def test_a_run_takes_the_place_of_the_same_run_and_leaves_the_others(tmp_path, monkeypatch):
    def run(method, lr):
        return {"method": method, "task": "t", "seed": 0, "lr": lr}

    old = [run("grid of 4", 0.1), run("default 1e-3", 1e-3)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one.json").write_text(json.dumps(run("grid of 4", 0.01)))
    monkeypatch.setattr("run.DATA", tmp_path)
    gather(tmp_path / "runs")
    kept = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == [
        run("grid of 4", 0.01),
        run("default 1e-3", 1e-3),
    ]


def test_a_method_that_raises_gives_no_answer(monkeypatch):
    def raises(task, seed):
        raise RuntimeError("no suggestion")

    monkeypatch.setitem(measure.__globals__["METHODS"], "default 1e-3", raises)
    result = measure("default 1e-3", TINY, seed=0)
    assert result["lr"] is None
    assert "no suggestion" in result["error"]


def test_a_fresh_training_says_whether_it_failed():
    assert fresh_training(TINY, 0.1, 0)["failed"] is False
    assert fresh_training(TINY, 1.0, 0)["failed"] is True
