import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import etascope as es
from etascope.plan import SCHEDULES, Plan, check_seeds, check_targets, logspace, parse_lrs


@given(low=st.floats(1e-9, 1e-3), decades=st.floats(0.1, 8), count=st.integers(2, 60))
def test_logspace_is_a_geometric_ladder_with_its_ends(low, decades, count):
    high = low * 10**decades
    rates = logspace(low, high, count)
    assert len(rates) == count
    assert rates[0] == low
    assert rates[-1] == high
    steps = [math.log(b / a) for a, b in pairwise(rates)]
    assert max(steps) - min(steps) < 1e-4


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        (["0.5,0.001"], (0.5, 0.001)),
        (["0.5", "0.001"], (0.5, 0.001)),
        (["1e-3:1:4"], (1e-3, 1e-2, 1e-1, 1.0)),
        (["3", "1e-1:1:2"], (3.0, 0.1, 1.0)),
        ([" 0.5 , 0.25 "], (0.5, 0.25)),
    ],
)
def test_rates_are_read_as_written(text, rates):
    assert parse_lrs(text) == rates


@pytest.mark.parametrize(
    "text",
    ["x", "", "1:2", "1e-3:1:x", "0:1:3", "1:1e3:0", "1:2:1", "1:2:3:4", "1:1:2", "1:1.00001:50"],
)
def test_a_text_that_is_no_rate_is_refused_by_name(text):
    with pytest.raises(es.UsageError):
        parse_lrs([text])


@given(st.text(max_size=20))
def test_any_text_gives_rates_or_a_usage_error(text):
    try:
        rates = parse_lrs([text])
    except es.UsageError:
        return
    assert all(isinstance(rate, float) for rate in rates)


@pytest.mark.parametrize(
    "lr",
    [
        0,
        -1e-3,
        math.nan,
        math.inf,
        "a",
        None,
        True,
        pytest.param(10**400, id="huge"),
        1j,
        [0.1],
        torch.zeros(1) + 1,
    ],
)
def test_a_rate_must_be_positive_and_finite(lr):
    with pytest.raises(es.UsageError, match="learning rate"):
        check_targets([lr], 10)


@pytest.mark.parametrize(
    "lrs", ["0.1", 0.1, None, [], torch.tensor(0.1), np.array(0.1), np.float64(0.1), b"1"]
)
def test_rates_come_as_a_list(lrs):
    with pytest.raises(es.UsageError, match=r"list of rates|no learning rate"):
        check_targets(lrs, 10)


def test_a_rate_given_twice_is_refused():
    with pytest.raises(es.UsageError, match="twice"):
        check_targets([0.1, 1e-1], 10)


def test_targets_default_to_the_horizon_and_may_be_shorter():
    assert check_targets([0.1, 0.2], 10) == {0.1: 10, 0.2: 10}
    assert check_targets({0.1: 10, 0.2: 4}, 10) == {0.1: 10, 0.2: 4}
    with pytest.raises(es.UsageError, match="beyond the horizon"):
        check_targets({0.1: 11}, 10)


@pytest.mark.parametrize("seeds", [0, -1, 1.5, True, "3", [], [1, 1], [-1], [2**64]])
def test_seeds_must_be_a_count_or_distinct_numbers(seeds):
    with pytest.raises(es.UsageError):
        check_seeds(seeds)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": 1.5},
        {"steps": 10, "accumulate": 0},
        {"steps": 10, "clip": 0.0},
        {"steps": 10, "clip": math.nan},
        {"steps": 10, "weight_decay": -1.0},
        {"steps": 10, "weight_decay": math.nan},
        {"steps": 10, "optimizer": "adamm"},
        {"steps": 10, "schedule": "cosinus"},
        {"steps": 10, "rungs": (0,)},
        {"steps": 10, "rungs": 3},
        {"steps": 10, "weight_decay": "a"},
        {"steps": 10, "optimizer": None},
        {"steps": 10, "schedule": 3},
        {"steps": 10, "clip": "a"},
        {"steps": 10, "clip": np.ones(2)},
        {"steps": 10, "weight_decay": np.zeros(1)},
        {"steps": 10, "rungs": torch.tensor(3)},
        {"steps": 10, "rungs": "3"},
        {"steps": 10, "probe_every": 0},
        {"steps": 10, "optimizer": lambda m, lr: None, "weight_decay": 0.1},
    ],
)
def test_a_plan_out_of_range_is_refused(wrong):
    with pytest.raises(es.UsageError):
        Plan(**wrong)


def test_numbers_of_numpy_are_numbers():
    assert Plan(steps=np.int64(10)).describe() == Plan(steps=10).describe()
    assert type(Plan(steps=np.int64(10)).steps) is int
    assert check_targets(np.array([0.1, 0.2]), 10) == {0.1: 10, 0.2: 10}
    assert check_seeds(np.int64(2)) == check_seeds(torch.tensor(2)) == (0, 1)


@pytest.mark.parametrize("kind", [int, np.float32, np.array, torch.tensor])
def test_numbers_of_a_plan_become_floats_whatever_holds_them(kind):
    plan = Plan(steps=10, clip=kind(2), weight_decay=kind(0))
    assert plan.describe() == Plan(steps=10, clip=2.0, weight_decay=0.0).describe()
    assert type(plan.clip) is type(plan.weight_decay) is float


def test_a_ladder_may_go_down_or_be_one_rate():
    assert logspace(1, 1e-2, 3) == (1.0, 0.1, 0.01)
    assert logspace(0.1, 0.1, 1) == (0.1,)
    assert logspace(1e-300, 1e300, 3)[1] == 1.0


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ((0.1, 0.1, 2), "2 rates cannot all be 0.1"),
        ((1, 1.000001, 5), "do not differ in six digits"),
        ((1.0000004, 1.0001, 4), None),
        ((1.0000004, 1.0000041, 8), "do not differ in six digits"),
    ],
)
def test_a_ladder_of_equal_rates_is_refused(ends, told):
    if told is None:
        assert sorted(set(logspace(*ends))) == list(logspace(*ends))
        return
    with pytest.raises(es.UsageError, match=told):
        logspace(*ends)


def test_rungs_are_tenths_and_end_at_the_horizon():
    assert Plan(steps=1000).rungs == tuple(range(100, 1001, 100))
    assert Plan(steps=5).rungs == (1, 2, 3, 4, 5)
    assert Plan(steps=100, rungs=(200, 30, 30)).rungs == (30, 100)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_the_rate_of_a_trial_is_the_peak_of_its_schedule(schedule, steps):
    plan = Plan(steps=steps, schedule=schedule, optimizer="sgd")
    model = torch.nn.Linear(1, 1)
    optimizer = plan.make_optimizer(model, 0.25)
    scheduler = plan.make_schedule(optimizer)
    seen = []
    for step in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None and step + 1 < steps:
            scheduler.step()
    assert max(seen) <= 0.25 * (1 + 1e-9)
    if steps >= 100:
        assert max(seen) == pytest.approx(0.25, rel=0.01)
    if schedule != "constant" and steps == 100:
        assert min(seen) < 0.25


def test_frozen_parameters_are_not_handed_to_the_optimizer():
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = Plan(steps=1, optimizer="sgd").make_optimizer(model, 0.1)
    assert optimizer.param_groups[0]["params"] == [model.weight]
