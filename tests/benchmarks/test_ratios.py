"""What the table of `make bench` says follows from the rounds; nothing is timed here."""

import json
import re
from pathlib import Path

import lineup
import pytest
from ratios import not_the_same_training, ratio, spread, summarize, table

ROOT = Path(lineup.__file__).resolve().parent.parent


def test_a_spread_is_the_median_with_its_quartiles():
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == (3.0, 2.0, 4.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)
    assert spread([]) is None


def test_a_slow_round_falls_on_both_and_leaves_their_ratio_alone():
    rounds = {"ours": [40.0, 10.0, 80.0], "theirs": [20.0, 5.0, 40.0]}
    assert ratio(rounds, "ours", "theirs") == (2.0, 2.0, 2.0)


def test_ratios_are_compared_round_by_round_and_not_median_by_median():
    rounds = {"ours": [1.0, 2.0, 3.0], "theirs": [3.0, 1.0, 1.0]}
    assert ratio(rounds, "ours", "theirs").median == pytest.approx(2.0)
    assert ratio(rounds, "theirs", "ours").median == pytest.approx(0.5)


def test_a_round_that_one_of_the_two_missed_counts_for_neither():
    rounds = {"ours": [6.0, None, 6.0], "theirs": [2.0, 1.0]}
    assert ratio(rounds, "ours", "theirs") == (3.0, 3.0, 3.0)
    assert ratio(rounds, "ours", "nobody") is None


def test_a_summary_turns_speeds_into_milliseconds_and_is_strict_json():
    summary = summarize({"ours": [50.0, 50.0], "gone": []}, ["ours", "absent"])
    assert summary["ours"]["milliseconds_a_model_step"] == {"median": 20.0, "q1": 20.0, "q3": 20.0}
    assert summary["ours"]["times_as_fast"]["absent"] is None
    assert summary["gone"]["rounds"] == 0
    assert summary["gone"]["model_steps_per_second"] is None
    json.dumps(summary, allow_nan=False)


def test_the_table_begins_with_the_slowest_and_ends_with_who_is_missing():
    rounds = {"ours": [40.0, 42.0], "fast": [60.0, 61.0], "slow": [10.0, 14.0], "gone": []}
    text = table(
        summarize(rounds, ["ours"]), ["ours"], {"slow": 3.25}, {"gone": "not measured: no compiler"}
    )
    lines = text.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["slow", "ours", "fast"]
    assert "| 3.2 s " in lines[2]
    assert "3.50 [3.25, 3.75]" in lines[2]
    assert lines[-1] == "gone: not measured: no compiler"
    assert len({len(line) for line in lines[:5]}) == 1


def test_a_peer_whose_losses_are_not_those_of_the_others_is_named():
    usual = {"a": [3.0, 1.2, 1.4], "b": [2.9, 1.0, 1.1], "c": [3.3, 1.5, 1.6]}
    assert not_the_same_training(usual) == {}
    assert not_the_same_training({}) == {}
    stale = not_the_same_training({**usual, "d": [7.2, 69.7, 619.5]})
    assert list(stale) == ["d"]
    assert "7.2" in stale["d"]
    assert list(not_the_same_training({**usual, "idle": [0.0, 0.0, 0.0]})) == ["idle"]


def test_the_table_says_so_where_nothing_can_be_compared():
    text = table(
        summarize({"theirs": [10.0]}, ["ours"]), ["ours"], {}, {"ours": "not measured: not built"}
    )
    assert text.splitlines()[2].split("|")[-2].strip() == "–"
    assert text.endswith("ours: not measured: not built")


@pytest.mark.parametrize(
    ("peers", "subjects"),
    [(lineup.CPU, lineup.CPU_SUBJECTS), (lineup.CUDA, lineup.CUDA_SUBJECTS)],
)
def test_every_peer_has_a_name_of_its_own_and_a_script(peers, subjects):
    names = [peer.name for peer in peers]
    assert len(set(names)) == len(names)
    assert set(subjects) <= set(names)
    for peer in peers:
        assert (ROOT / "benchmarks" / "peers" / f"{peer.script}.py").is_file()
        json.dumps(peer.options)


def test_peers_and_project_are_measured_on_the_same_torch():
    files = (ROOT / "constraints.txt", ROOT / "benchmarks" / "constraints.txt")
    pins = {re.search(r"^torch==.*$", file.read_text(), re.M)[0] for file in files}
    assert len(pins) == 1
