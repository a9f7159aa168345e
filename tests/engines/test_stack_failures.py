"""What goes wrong for one rate of a stack stays with it."""

import torch
from small import line_problem, work_of
from stacks import assert_near, both, doubled, plain_net

from etascope.plan import Plan
from etascope.records import TrialId


def test_failures_carry_the_cause_step_and_layer_of_the_oracles():
    problem, plan = doubled(module=plain_net), Plan(steps=30, optimizer="sgd")
    ours, theirs, about = both(problem, plan, work_of([0.1, 1e160, 0.01, 1e200, 1e308], 30))
    assert about.startswith("stacked: up to")
    assert_near(ours[0], theirs[0], 30)
    failures = {t.lr: bursts[-1].failure for t, bursts in ours[0].items()}
    assert failures[0.1] is None is failures[0.01]
    assert all(failures[lr].cause == "non-finite" for lr in (1e160, 1e200, 1e308))
    assert failures[1e308].layer is not None
    assert all(ours[1][TrialId(lr, 0)] is None for lr in (1e160, 1e200, 1e308))


def test_data_that_is_not_finite_fails_every_rate_as_data():
    x, y = (t.clone() for t in line_problem().train)
    x[40] = float("nan")
    plan = Plan(steps=20, optimizer="sgd")
    ours, theirs, _ = both(line_problem(train=(x, y)), plan, work_of([0.01, 0.1], 20))
    assert_near(ours[0], theirs[0], 20, rtol=1e-5)
    assert {bursts[-1].failure.cause for bursts in ours[0].values()} == {"data"}


def test_data_that_cannot_be_drawn_fails_every_rate_at_that_step():
    x, y = line_problem().train

    def train(seed, epoch):
        for first in range(0, 64, 8):
            if epoch == 1 and first == 16:
                raise OSError("the disk is gone")
            yield x[first : first + 8], y[first : first + 8]

    plan = Plan(steps=20, optimizer="sgd")
    ours, theirs, _ = both(line_problem(train=train), plan, work_of([0.01, 0.1], 20))
    assert_near(ours[0], theirs[0], 20, rtol=1e-5)
    for bursts in ours[0].values():
        assert (bursts[-1].failure.cause, bursts[-1].failure.step) == ("exception", 10)


def test_an_exception_in_one_optimizer_ends_that_rate_only():
    class Fragile(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            if self.param_groups[0]["params"][0].abs().max() > 50:
                raise OverflowError("too far")

    problem = line_problem()
    plan = Plan(steps=30, optimizer=lambda model, lr: Fragile(model.parameters(), lr=lr))
    ours, theirs, about = both(problem, plan, work_of([0.1, 5.0, 0.01], 30))
    assert about.startswith("stacked: up to")
    assert_near(ours[0], theirs[0], 30, rtol=1e-5)
    failed = ours[0][TrialId(5.0, 0)][-1].failure
    assert (failed.cause, failed.message) == ("exception", "OverflowError: too far")


class Guard(torch.autograd.Function):
    """The identity, which looks at what passes, alone or stacked."""

    @staticmethod
    def forward(x, look):
        look(x, 1)
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad, None

    @staticmethod
    def vmap(info, in_dims, x, look):
        look(x, info.batch_size)
        return x.clone(), in_dims[0]


def guarded_line(look):
    def loss(model, batch):
        return (Guard.apply(model(batch[0]), look) - batch[1]).square().mean()

    return line_problem(loss=loss)


def test_an_exception_in_the_loss_of_a_stack_is_that_of_the_rate_it_belongs_to():
    def look(x, models):
        if x.abs().max() > 50:
            raise ValueError("out of range")

    plan = Plan(steps=30, optimizer="sgd")
    ours, theirs, about = both(guarded_line(look), plan, work_of([0.1, 5.0, 0.01], 30))
    assert about.startswith("stacked: up to")
    assert_near(ours[0], theirs[0], 30, rtol=1e-5)
    assert ours[0][TrialId(5.0, 0)][-1].failure.message == "ValueError: out of range"


def test_what_only_a_stack_cannot_do_is_done_one_model_at_a_time_from_there_on():
    stacks = []

    def look(x, models):
        if models > 1:
            stacks.append(models)
            if len(stacks) > 4:
                raise RuntimeError("no rule for this. More words")

    plan = Plan(steps=12, optimizer="sgd")
    ours, theirs, about = both(guarded_line(look), plan, work_of([0.1, 0.5, 0.01], 12, (0, 1)))
    assert about == "stacked, but one model at a time on cpu: RuntimeError: no rule for this"
    assert stacks[1:] == [3, 3, 3, 3]
    assert_near(ours[0], theirs[0], 12, rtol=1e-5)


def test_a_stack_too_large_for_the_memory_is_halved():
    stacks = []

    def look(x, models):
        if models > 2:
            raise torch.OutOfMemoryError
        stacks.append(models)

    plan = Plan(steps=12, optimizer="sgd")
    rates = [0.1, 0.2, 0.5, 0.01, 0.02]
    ours, theirs, about = both(guarded_line(look), plan, work_of(rates, 12))
    assert about.startswith("stacked: up to")
    assert 2 in stacks
    assert_near(ours[0], theirs[0], 12, rtol=1e-5)
