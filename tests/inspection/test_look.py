"""The inside of a training as a report keeps it, and the numbers in an update."""

import json
import math

import pytest
import torch
from small import blobs_problem

import etascope as es
from etascope.inspection.look import look, look_from_json, look_to_json
from etascope.inspection.update import measure_update
from etascope.plan import Plan


def test_a_look_survives_its_json():
    found = look(blobs_problem(), Plan(steps=5), [0.01, 1e30])
    assert not found.obstacles
    assert look_from_json(json.loads(json.dumps(look_to_json(found)))) == found


def test_what_cannot_be_captured_is_told_and_leaves_the_rest():
    def loss(model, batch):
        if not isinstance(model, torch.nn.Module):
            raise TypeError
        raise RuntimeError("no more")

    found = look(blobs_problem(loss=loss), Plan(steps=5), [0.01])
    assert (found.graph, found.step, found.updates) == (None, None, ())
    assert len(found.obstacles) == 3
    assert all("no more" in sentence for sentence in found.obstacles)
    assert look_from_json(look_to_json(found)) == found


def test_sgd_changes_a_weight_by_the_rate_times_its_gradient():
    update = measure_update(blobs_problem(), Plan(steps=5, optimizer="sgd"), 0.03, t=3)
    assert update.lr_t is None
    for parameter in update.parameters:
        for moved, slope in zip(parameter.change, parameter.gradient, strict=True):
            assert moved == pytest.approx(0.03 * slope, rel=1e-3, abs=1e-7)


def test_the_first_step_of_adam_is_the_rate_wherever_there_is_a_gradient():
    update = measure_update(blobs_problem(), Plan(steps=5), 0.01, t=1)
    assert update.lr_t == pytest.approx(0.01 * math.sqrt(1 - 0.999) / (1 - 0.9))
    for parameter in update.parameters:
        assert parameter.change.high <= 0.01 * (1 + 1e-4)
        assert parameter.state["exp_avg"].middle == pytest.approx(0.1 * parameter.gradient.middle)
        # Quantiles between two values of a short vector do not commute with squaring.
        square = parameter.gradient.high**2
        assert parameter.state["exp_avg_sq"].high == pytest.approx(0.001 * square, rel=0.3)


def test_numbers_that_are_not_finite_are_none():
    update = measure_update(blobs_problem(), Plan(steps=5, optimizer="sgd"), 1e30, t=5)
    assert any(parameter.weight.middle is None for parameter in update.parameters)


def test_measuring_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    measure_update(blobs_problem(), Plan(steps=5), 0.01)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_built_in_networks_gradients_die_at_a_half():
    plan = Plan(steps=10)
    high, low = (measure_update(es.get_problem("mnist-cnn"), plan, lr) for lr in (0.5, 0.001))
    dead = [p.gradient.high == 0 for p in high.parameters if p.name.startswith("layer1")]
    assert all(dead)
    assert all(p.gradient.middle > 0 for p in low.parameters if p.name.startswith("layer1"))
    assert all(p.weight.middle > 0.5 for p in high.parameters if p.name.endswith("weight"))
