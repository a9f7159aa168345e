"""The stacked engine computes the trials of the serial one in another order of additions."""

import numpy as np
import pytest
import torch
from small import blobs_problem, gather, line_problem, told, work_of
from stacks import (
    GENTLE,
    RATES,
    adam,
    assert_near,
    assert_same_state,
    both,
    doubled,
    image_net,
    momentum,
    two_groups,
)
from torch import nn

from etascope.engines.base import Work
from etascope.engines.choice import choose_engine
from etascope.engines.crew import Crew
from etascope.engines.serial import SerialEngine
from etascope.engines.stacked import StackedEngine
from etascope.plan import Plan
from etascope.records import TrialId, merge


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


def test_stacked_can_be_asked_for_by_name_and_takes_a_number():
    plan = Plan(steps=12, optimizer=momentum)
    engine, line = choose_engine(
        "stacked", blobs_problem(), plan, workers=3, crew=Crew(), seconds=100.0
    )
    assert engine.at_once == 3
    assert line == "engine stacked: up to 3 rates of a seed as one program on cpu"


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_an_accelerator_is_given_to_stacks_which_agree_with_the_oracle_there():
    device = torch.accelerator.current_accelerator()
    problem, plan = blobs_problem(device=device), Plan(steps=12, optimizer="adam")
    engine, line = choose_engine("auto", problem, plan, workers=None, crew=Crew(), seconds=1.0)
    assert line.startswith("engine stacked: up to")
    assert "the default on an accelerator" in line
    ours, _ = gather(engine, work_of(RATES, 12))
    theirs, _ = gather(SerialEngine(problem, plan), work_of(RATES, 12))
    assert_near(ours, theirs, 12, rtol=1e-3)
