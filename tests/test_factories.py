"""The door for optimizer and schedule: what cannot work is told before any training."""

from functools import partial

import pytest
import torch
from small import blobs_problem
from torch.optim import SGD, Adam, lr_scheduler

import etascope as es
from etascope.factories import check_factories
from etascope.plan import Plan

other = torch.nn.Linear(1, 1)


class Greedy(torch.optim.Optimizer):
    """Its step asks for a closure."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self, closure):
        return closure()


class FromModel(SGD):
    """A class that is a factory: it is made of a model and a rate."""

    def __init__(self, model, lr):
        super().__init__(model.parameters(), lr)


def check(steps=10, **options):
    check_factories(blobs_problem(), Plan(steps=steps, **options), 0.1)


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (Adam, r"pass a factory such as lambda model, lr: Adam\(model.parameters\(\), lr=lr\)"),
        (partial(Adam, betas=(0.8, 0.9)), r"lambda model, lr: Adam\(model.parameters"),
        (lambda m, lr: None, "optimizer factory returned a NoneType"),
        (lambda m, lr: Adam, "optimizer factory returned a type"),
        (lambda m: SGD(m.parameters(), 0.1), "optimizer raised TypeError"),
        (lambda m, lr: torch.optim.LBFGS(m.parameters()), "LBFGS needs a closure"),
        (lambda m, lr: Greedy(m.parameters(), lr), "Greedy needs a closure"),
        (lambda m, lr: SGD(other.parameters(), lr), "not those of the model"),
        (lambda m, lr: SGD([*m.parameters(), *other.parameters()], lr), "not those of the model"),
    ],
)
def test_an_optimizer_that_no_trial_can_use_is_told(optimizer, told):
    with pytest.raises(es.UsageError, match=told):
        check(optimizer=optimizer)


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (lambda o, n: lr_scheduler.ReduceLROnPlateau(o), "ReduceLROnPlateau follows a measured"),
        (lr_scheduler.ReduceLROnPlateau, "ReduceLROnPlateau"),
        (lambda o, n: None, "schedule factory returned a NoneType; it must return a torch"),
        (lambda o, n: lambda step: 0.1, "schedule factory returned a function"),
        (lambda o, n: lr_scheduler.StepLR, "schedule factory returned a type"),
        (lr_scheduler.LambdaLR, r"lambda optimizer, steps: LambdaLR\(optimizer, steps\)"),
        (lambda o: lr_scheduler.ConstantLR(o, 1), "schedule raised TypeError"),
        (lambda o, n: lr_scheduler.LambdaLR(o, lambda t: 1 / (t - 1)), "ZeroDivisionError"),
    ],
)
def test_a_schedule_that_no_trial_can_use_is_told(schedule, told):
    with pytest.raises(es.UsageError, match=told):
        check(optimizer="sgd", schedule=schedule)


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize(
    "schedule",
    [
        "constant",
        "one-cycle",
        lr_scheduler.CosineAnnealingLR,
        lambda o, n: lr_scheduler.OneCycleLR(o, 0.1, total_steps=max(n, 2)),
        lambda o, n: lr_scheduler.LambdaLR(o, lambda t: 1 - t / n),
    ],
)
def test_what_can_be_used_passes_the_door(steps, schedule):
    check(steps=steps, optimizer="sgd", schedule=schedule)
    check(steps=steps, optimizer=FromModel, schedule=schedule)


def test_the_door_changes_nothing_of_the_users():
    given = torch.nn.Linear(2, 3)
    before = given.weight.clone()
    state = torch.get_rng_state()
    check_factories(blobs_problem(model=given), Plan(steps=5, schedule="cosine"), 0.1)
    assert torch.equal(given.weight, before)
    assert torch.equal(torch.get_rng_state(), state)
