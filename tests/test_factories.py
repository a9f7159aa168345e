"""The door for optimizer and schedule: what cannot work is told before any training."""

from functools import partial

import pytest
import torch
from small import blobs_problem
from torch.optim import SGD, Adam, lr_scheduler

import etascope as es
from etascope.factories import check_effect, check_factories
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
        lambda o, n: lr_scheduler.OneCycleLR(
            o, [group["lr"] for group in o.param_groups], total_steps=max(n, 2)
        ),
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


# A rate without effect ------------------------------------------------------------------------


class Absolute(lr_scheduler.LRScheduler):
    """Its rates are written down once and for all."""

    def get_lr(self):
        return [0.01 * 0.9**self.last_epoch for _ in self.base_lrs]


class Private(SGD):
    """Keeps its rate to itself: the groups always say 1."""

    def __init__(self, params, lr):
        super().__init__(params, 1.0)
        self.own = lr

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = self.own
        super().step()
        for group in self.param_groups:
            group["lr"] = 1.0


class Scaled(SGD):
    """A rate of 1 and a scale beside it, as of optimizers that find their own rate."""

    def __init__(self, params, scale):
        super().__init__(params, 1.0)
        self.param_groups[0]["scale"] = scale


def two_groups(first, second):
    def make(model, lr):
        a, *rest = model.parameters()
        return SGD([{"params": [a], "lr": first(lr)}, {"params": rest, "lr": second(lr)}], lr=lr)

    return make


def fixed(lr):
    return 0.003


def free(lr):
    return lr


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda m, lr: Adam(m.parameters(), 0.01),
        lambda m, lr: Adam(m.parameters()),
        lambda m, lr: SGD(m.parameters(), lr=0.1, momentum=0.9),
        two_groups(fixed, fixed),
        lambda m, lr: Private(m.parameters(), 0.01),
        lambda m, lr: partial(SGD, lr=0.1)(m.parameters()),
        lambda m, lr, _kept=Adam: _kept([{"params": m.parameters(), "lr": 0.1}], lr),
    ],
)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_an_optimizer_factory_that_ignores_its_rate_is_named(optimizer, schedule):
    with pytest.raises(es.UsageError, match=r"optimizer factory ignores its learning rate.*lr=lr"):
        check(optimizer=optimizer, schedule=schedule)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o, n: lr_scheduler.OneCycleLR(o, max_lr=0.01, total_steps=n),
        lambda o, n: lr_scheduler.CyclicLR(o, 0.001, 0.01, step_size_up=3, cycle_momentum=False),
        lambda o, n: Absolute(o),
        lambda o, n: lr_scheduler.LambdaLR(o, lambda t: 0.01 / o.param_groups[0]["initial_lr"]),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", lambda m, lr: Adam(m.parameters(), lr)])
def test_a_schedule_that_ignores_the_rate_is_named(optimizer, schedule):
    with pytest.raises(es.UsageError, match="schedule ignores the learning rate of its optimizer"):
        check(optimizer=optimizer, schedule=schedule)


def test_a_schedule_that_never_leaves_zero_is_told():
    with pytest.raises(es.UsageError, match="gives the rate 0 at each of the 10 steps"):
        check(optimizer="sgd", schedule=lambda o, n: lr_scheduler.LambdaLR(o, lambda t: t // n))


@pytest.mark.parametrize(
    "optimizer",
    [
        two_groups(fixed, free),
        two_groups(free, fixed),
        two_groups(free, lambda lr: lr / 10),
        lambda m, lr: Private(m.parameters(), lr),
        lambda m, lr: Scaled(m.parameters(), lr),
        lambda m, lr: SGD(m.parameters(), min(lr, 0.05)),
        lambda m, lr: SGD(m.parameters(), torch.tensor(lr)),
        lambda m, lr: Adam(m.parameters(), lr) if lr > 0.01 else 1 / 0,
    ],
)
@pytest.mark.parametrize(
    "schedule",
    [
        "linear-warmup",
        lambda o, n: lr_scheduler.LambdaLR(o, lambda t: t / n),
        lambda o, n: lr_scheduler.LambdaLR(o, lambda t: max(0, t - 7)),
        lambda o, n: lr_scheduler.CosineAnnealingLR(o, n, eta_min=1e-3),
    ],
)
def test_whatever_follows_the_rate_somewhere_passes(optimizer, schedule):
    check(optimizer=optimizer, schedule=schedule)


def test_a_factory_is_not_blamed_where_no_gradient_moves_anything():
    def loss(model, batch):
        return 0 * model(batch[0]).sum()

    plan = Plan(steps=10, optimizer=lambda m, lr: Adam(m.parameters(), 0.01))
    check_effect(blobs_problem(loss=loss), plan, 0.1)


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (lambda params, lr: SGD(params, lr=lr), "its parameters in the place of the model: write"),
        (lambda lr, m: SGD(m.parameters(), lr=lr), "this one takes the rate first: write it"),
        (lambda lr: SGD(other.parameters(), lr), r"factory is called as \(model, lr\)"),
        (lambda m: SGD(m.parameters(), 0.1), r"factory is called as \(model, lr\)"),
    ],
)
def test_an_optimizer_factory_with_other_arguments_is_told_how_it_is_called(optimizer, told):
    with pytest.raises(es.UsageError, match=told):
        check(optimizer=optimizer)


def test_a_schedule_factory_with_other_arguments_is_told_how_it_is_called():
    with pytest.raises(es.UsageError, match=r"schedule factory is called as \(optimizer, steps\)"):
        check(schedule=lambda o: lr_scheduler.ConstantLR(o, 1))


def test_what_is_made_already_is_no_factory():
    made = SGD(other.parameters(), 0.1)
    with pytest.raises(es.UsageError, match=r"SGD of one model already; pass a factory such as"):
        Plan(steps=5, optimizer=made)
    with pytest.raises(es.UsageError, match="StepLR of one optimizer already; pass a factory"):
        Plan(steps=5, schedule=lr_scheduler.StepLR(made, 3))
