"""What does not stack is trained one model at a time, and the engine says why."""

import pytest
import torch
from small import blobs_problem, told, work_of
from stacks import (
    RATES,
    assert_near,
    both,
    doubled,
    momentum,
)
from torch import nn
from torch.nn import functional as F

from etascope.engines.stacked import StackedEngine
from etascope.plan import Plan


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, points):
        return self.out(self.cell(points[:, None])[0][:, -1])


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.calls = nn.Linear(2, 3), 1000

    def forward(self, points):
        self.calls += 1
        return self.out(points) * (1 - 1 / self.calls)


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.seen = nn.Linear(2, 3), [0]

    def forward(self, points):
        self.seen[0] += len(points)
        return self.out(points) / self.seen[0] ** 0.1

    def get_extra_state(self):
        return self.seen[0]

    def set_extra_state(self, state):
        self.seen[0] = state


class Opaque(torch.autograd.Function):
    """A function of the user's own, without a rule for stacks."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def branching_loss(model, batch):
    out = model(batch[0])
    return F.cross_entropy(out if out.mean() > 0 else -out, batch[1])


def opaque_loss(model, batch):
    return F.cross_entropy(Opaque.apply(model(batch[0])), batch[1])


def changing_loss(model, batch):
    batch[0].mul_(0.5)
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": Recurrent}, "lstm"),
        ({"model": Counting}, "a step changes calls, which is no buffer"),
        ({"model": Stateful}, "keeps a state that is no tensor"),
        ({"model": lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, momentum=None))}, ""),
        ({"loss": branching_loss}, "data-dependent control flow"),
        ({"loss": opaque_loss}, "autograd.Function"),
        ({"loss": changing_loss}, "changes the batch in place"),
    ],
    ids=["lstm", "counter", "extra state", "momentum none", "branch", "autograd", "in place"],
)
def test_what_does_not_stack_is_trained_one_model_at_a_time_and_says_why(changes, why):
    problem, plan = blobs_problem(**changes), Plan(steps=12, optimizer=momentum, rungs=(5,))
    ours, theirs, about = both(problem, plan, work_of([0.01, 0.1], 12))
    assert about.startswith("stacked, but one model at a time on cpu: ")
    assert why in about
    for trial, bursts in theirs[0].items():
        assert told(ours[0][trial], 12) == told(bursts, 12)


def test_a_gradient_that_comes_out_differently_in_a_stack_is_noticed():
    """The model is built by the factory, since a copy of a parameter leaves its hooks behind."""

    class Doubling(nn.Linear):
        def forward(self, x):
            if self.weight is self.kept:
                return super().forward(x)
            return super().forward(x) * 2

    def model():
        module = Doubling(2, 3)
        object.__setattr__(module, "kept", module.weight)
        return module

    problem = blobs_problem(model=model)
    with StackedEngine(problem, Plan(steps=12, optimizer=momentum)) as engine:
        assert "its losses differ there" in engine.about


def test_rates_that_freeze_different_weights_are_trained_one_model_at_a_time():
    def freezing(model, lr):
        model[0].weight.requires_grad_(lr < 0.1)
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)

    ours, theirs, about = both(doubled(), Plan(steps=12, optimizer=freezing), work_of(RATES, 12))
    assert "whose tensors differ in kind" in about
    assert_near(ours[0], theirs[0], 12)


def test_a_model_that_knows_its_rate_is_trained_alone():
    class Scaled(nn.Linear):
        scale = 1.0

        def forward(self, x):
            return super().forward(x) / self.scale

    def scaling(model, lr):
        model.scale = lr**0.5
        return torch.optim.SGD(model.parameters(), lr=lr)

    problem = doubled(module=lambda: Scaled(2, 3))
    ours, theirs, about = both(problem, Plan(steps=12, optimizer=scaling), work_of(RATES, 12))
    assert "its losses differ there" in about
    assert_near(ours[0], theirs[0], 12, rtol=0)
