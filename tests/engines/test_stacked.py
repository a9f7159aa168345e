"""The stacked engine computes the trials of the serial one in another order of additions."""

import numpy as np
import pytest
import torch
from small import blobs_problem, gather, line_problem, told, work_of
from torch import nn
from torch.nn import functional as F

from etascope.engines.base import Work
from etascope.engines.choice import choose_engine
from etascope.engines.serial import SerialEngine
from etascope.engines.stacked import StackedEngine
from etascope.plan import Plan
from etascope.records import TrialId, merge
from etascope.state import unpack

RATES = [0.001, 0.03, 0.3]
GENTLE = [0.001, 0.003, 0.02]  # where rounding is not amplified within 20 steps


def momentum(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def adam(model, lr):
    return torch.optim.Adam(model.parameters(), lr=lr)


def two_groups(model, lr):
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "lr": lr / 10}], lr=lr
    )


def normalized_net():
    """Without a bias before batch norm: its gradient is rounding, which Adam makes steps of."""
    return nn.Sequential(
        nn.Linear(2, 16, bias=False),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(16, 3),
    )


def plain_net():
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def doubled(problem_of=blobs_problem, module=normalized_net, **changes):
    """A problem in float64, where agreement can be told from chance."""
    given = problem_of()

    def tensors(split):
        return tuple(t.double() if t.is_floating_point() else t for t in getattr(given, split))

    held_out = {"test": tensors("test")} if given.test is not None else {}
    return problem_of(
        **{
            "model": lambda: module().double(),
            "train": tensors("train"),
            "valid": tensors("valid"),
            **held_out,
            **changes,
        }
    )


def image_net():
    return nn.Sequential(
        nn.Unflatten(1, (2, 1, 1)),
        nn.Upsample(scale_factor=6),
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Dropout2d(0.2),
        nn.InstanceNorm2d(6),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def both(problem, plan, work):
    """Bursts and states of the stacked and of the serial engine, and what the first says."""
    with StackedEngine(problem, plan) as engine, SerialEngine(problem, plan) as oracle:
        return gather(engine, work), gather(oracle, work), engine.about


def assert_near(ours, theirs, target, rtol=1e-9):
    assert set(ours) == set(theirs)
    for trial in ours:
        a, b = (merge(trial, target, bursts[trial]) for bursts in (ours, theirs))
        np.testing.assert_allclose(a.loss, b.loss, rtol=rtol, err_msg=str(trial))
        np.testing.assert_allclose(a.probe_metric, b.probe_metric, rtol=rtol)
        assert [(e.step, e.split) for e in a.evaluations] == [
            (e.step, e.split) for e in b.evaluations
        ]
        np.testing.assert_allclose(
            [e.loss for e in a.evaluations], [e.loss for e in b.evaluations], rtol=rtol
        )
        assert a.failure == b.failure


def assert_same_state(ours, theirs, rtol=1e-9):
    ours, theirs = unpack(ours), unpack(theirs)
    assert (ours.step, ours.epoch, ours.position) == (theirs.step, theirs.epoch, theirs.position)
    for name, tensor in theirs.model.items():
        torch.testing.assert_close(ours.model[name], tensor, rtol=rtol, atol=1e-12)
    for number, kept in theirs.optimizer["state"].items():
        for name, tensor in kept.items():
            torch.testing.assert_close(
                ours.optimizer["state"][number][name], tensor, rtol=rtol, atol=1e-12
            )


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": momentum},
        {"optimizer": adam},
        {"optimizer": "adam"},
        {"optimizer": two_groups},
        {"optimizer": momentum, "clip": 0.1},
        {"optimizer": "adam", "accumulate": 2},
        {"optimizer": momentum, "schedule": "cosine"},
        {"optimizer": "sgd", "clip": 0.5, "accumulate": 3, "schedule": "one-cycle"},
    ],
    ids=str,
)
def test_a_stack_trains_what_the_oracle_trains(changes):
    """The model has batch norm and dropout; a stop before the horizon gives states to compare."""
    plan = Plan(steps=30, rungs=(7, 14), **changes)
    ours, theirs, about = both(doubled(), plan, work_of(RATES, 20, seeds=(0, 1)))
    assert about == "stacked: up to 8 rates of a seed as one program on cpu"
    assert_near(ours[0], theirs[0], 20)
    for trial, state in theirs[1].items():
        assert_same_state(ours[1][trial], state)


def test_images_in_channels_last_keep_their_dropout_masks():
    problem = doubled(module=image_net)
    ours, theirs, about = both(problem, Plan(steps=20, optimizer=momentum), work_of(GENTLE, 20))
    assert about.startswith("stacked: up to")
    assert_near(ours[0], theirs[0], 20)


def test_attention_and_embeddings_stack():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(4, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
            self.out = nn.Linear(8, 3)

        def forward(self, points):
            return self.out(self.layer(self.words((points > 0).long())).mean(1))

    problem = doubled(module=Reader)
    ours, theirs, about = both(problem, Plan(steps=20, optimizer=adam), work_of(RATES, 20))
    assert about.startswith("stacked: up to")
    assert_near(ours[0], theirs[0], 20, rtol=1e-8)


def test_bfloat16_is_autocast_in_a_stack_too():
    plan = Plan(steps=10, optimizer="sgd", precision="bfloat16")
    ours, theirs, about = both(blobs_problem(), plan, work_of([0.01, 0.1], 10))
    assert about.startswith("stacked: up to")
    assert_near(ours[0], theirs[0], 10, rtol=0.05)
    exact, _, _ = both(blobs_problem(), Plan(steps=10, optimizer="sgd"), work_of([0.01, 0.1], 10))
    trial = TrialId(0.1, 0)
    assert told(ours[0][trial], 10)[0] != told(exact[0][trial], 10)[0]


def test_a_rate_that_becomes_nan_leaves_the_others_as_they_are_without_it():
    problem, plan = doubled(module=image_net), Plan(steps=20, optimizer=momentum)
    rates = [0.0001, 0.0003, 0.001]
    with StackedEngine(problem, plan) as engine:
        without, _ = gather(engine, work_of(rates, 20))
        beside, _ = gather(engine, work_of([rates[0], 1e30, *rates[1:]], 20))
    failed = beside.pop(TrialId(1e30, 0))
    assert failed[-1].failure.cause == "non-finite"
    assert_near(beside, without, 20, rtol=1e-12)


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


@pytest.mark.parametrize("first", [StackedEngine, SerialEngine])
def test_a_trial_begun_by_one_engine_goes_on_in_the_other(first):
    problem = doubled()
    plan = Plan(steps=30, optimizer=adam, schedule="cosine", accumulate=2, rungs=(8, 16))
    second = SerialEngine if first is StackedEngine else StackedEngine
    with first(problem, plan) as one, second(problem, plan) as other:
        begun, states = gather(one, work_of(RATES, 13))
        rest, _ = gather(other, [Work(trial, 30, 13, state) for trial, state in states.items()])
    oracle, _ = gather(SerialEngine(problem, plan), work_of(RATES, 30))
    for trial, bursts in oracle.items():
        ours = merge(trial, 30, [*begun[trial], *rest[trial]])
        theirs = merge(trial, 30, bursts)
        np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-9)
        assert ours.evaluation("test").loss == pytest.approx(
            theirs.evaluation("test").loss, rel=1e-9
        )


def test_trials_at_different_steps_and_of_different_seeds_are_stacked_apart():
    problem, plan = doubled(), Plan(steps=30, optimizer=adam)
    with StackedEngine(problem, plan) as engine:
        _, states = gather(engine, work_of(RATES[:2], 13))
        work = [
            *(Work(trial, 20 + trial.lr, 13, state) for trial, state in states.items()),
            *work_of(RATES[2:], 20),
            *work_of(RATES, 17, seeds=(1,)),
        ]
        work = [piece._replace(target=int(piece.target)) for piece in work]
        ours, _ = gather(engine, work)
    theirs, _ = gather(SerialEngine(problem, plan), work)
    for trial, bursts in theirs.items():
        assert [(b.start, b.stop) for b in ours[trial]] == [(b.start, b.stop) for b in bursts]
        for a, b in zip(ours[trial], bursts, strict=True):
            np.testing.assert_allclose(a.loss, b.loss, rtol=1e-9)


def test_rates_with_different_targets_leave_the_stack_one_by_one():
    problem, plan = doubled(), Plan(steps=30, optimizer=adam)
    work = [Work(TrialId(lr, 0), target) for lr, target in zip(RATES, (11, 30, 5), strict=True)]
    ours, theirs, _ = both(problem, plan, work)
    assert_near(ours[0], theirs[0], 30)
    for trial, state in theirs[1].items():
        if state is not None:
            assert_same_state(ours[1][trial], state)


def test_an_optimizer_that_replaces_the_memory_of_a_weight_still_moves_it():
    class Replacing(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data = p.data - group["lr"] * p.grad

    problem = doubled()
    plan = Plan(steps=20, optimizer=lambda model, lr: Replacing(model.parameters(), lr=lr))
    ours, theirs, about = both(problem, plan, work_of(RATES, 20))
    assert about.startswith("stacked: up to")
    assert_near(ours[0], theirs[0], 20)


def test_a_weight_that_the_loss_does_not_reach_has_no_gradient_and_does_not_decay():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(1, 1), nn.Linear(1, 1)
            self.idle.bias.requires_grad_(False)

        def forward(self, x):
            return self.used(x)

    problem = doubled(line_problem, module=Idle)
    plan = Plan(steps=20, optimizer="adamw", weight_decay=0.5)
    ours, theirs, about = both(problem, plan, work_of(RATES, 10))
    assert about.startswith("stacked: up to")
    for trial, state in theirs[1].items():
        assert_same_state(ours[1][trial], state)


def test_what_a_step_took_is_divided_among_those_who_took_it():
    problem, plan = doubled(), Plan(steps=20, optimizer=adam)
    with StackedEngine(problem, plan) as engine:
        ours, _ = gather(engine, work_of(RATES, 20))
    seconds = [[b.seconds for b in bursts] for bursts in ours.values()]
    assert all(s > 0 for per_trial in seconds for s in per_trial)
    assert seconds[0] == seconds[1] == seconds[2]


# What does not stack ------------------------------------------------------------------------


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


def test_stacked_can_be_asked_for_by_name_and_takes_a_number():
    plan = Plan(steps=12, optimizer=momentum)
    engine, line = choose_engine("stacked", blobs_problem(), plan, 3, 100.0)
    assert engine.at_once == 3
    assert line == "engine stacked: up to 3 rates of a seed as one program on cpu"


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_an_accelerator_is_given_to_stacks_which_agree_with_the_oracle_there():
    device = torch.accelerator.current_accelerator()
    problem, plan = blobs_problem(device=device), Plan(steps=12, optimizer="adam")
    engine, line = choose_engine("auto", problem, plan, None, 1.0)
    assert line.startswith("engine stacked: up to")
    assert "the default on an accelerator" in line
    ours, _ = gather(engine, work_of(RATES, 12))
    theirs, _ = gather(SerialEngine(problem, plan), work_of(RATES, 12))
    assert_near(ours, theirs, 12, rtol=1e-3)
