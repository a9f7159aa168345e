"""What every engine promises; the serial one is the oracle."""

import os

import pytest
import torch
from small import blobs_problem, children, gather, line_problem, told, work_of
from torch import nn

from etascope.engines.base import Work
from etascope.engines.processes import ProcessesEngine
from etascope.engines.ray import RayEngine
from etascope.engines.serial import SerialEngine
from etascope.engines.stacked import StackedEngine
from etascope.plan import Plan
from etascope.records import TrialId, merge

ENGINES = {
    "serial": SerialEngine,
    "processes": lambda problem, plan: ProcessesEngine(problem, plan, workers=2),
    "stacked": StackedEngine,
    "ray": lambda problem, plan: RayEngine(problem, plan, workers=2),
}


ROUNDING = 1e-4  # a stack adds in another order; no other engine differs in a single bit


@pytest.fixture(params=ENGINES)
def make(request):
    if request.param == "ray":
        request.getfixturevalue("ray_connection")  # one cluster for all: starting it takes seconds
    return ENGINES[request.param]


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)


def plan_of(steps=12, **changes):
    return Plan(**{"steps": steps, "optimizer": sgd, "rungs": (4, 8), **changes})


def assert_same(make, ours, theirs, target=12):
    """Bit for bit; from a stack, but for rounding."""
    assert set(ours) == set(theirs)
    for trial, bursts in ours.items():
        if make is not StackedEngine:
            assert told(bursts, target) == told(theirs[trial], target), trial
            continue
        a, b = (merge(trial, target, of[trial]) for of in (ours, theirs))
        assert a.loss == pytest.approx(b.loss, rel=ROUNDING, nan_ok=True), trial
        assert a.failure == b.failure
        assert [(e.step, e.split) for e in a.evaluations] == [
            (e.step, e.split) for e in b.evaluations
        ]
        for ours_then, theirs_then in zip(a.evaluations, b.evaluations, strict=True):
            assert ours_then.loss == pytest.approx(theirs_then.loss, rel=ROUNDING)


def assert_same_losses(make, ours, theirs):
    assert ours == (pytest.approx(theirs, rel=ROUNDING) if make is StackedEngine else theirs)


def raising_at_large_rates():
    """A problem whose loss raises as soon as the weights have grown."""

    def loss(model, batch):
        if model.weight.abs().max() > 50:
            raise RuntimeError("too large for me")
        return (model(batch[0]) - batch[1]).square().mean()

    return line_problem(loss=loss)


def test_trials_are_the_oracles_bit_for_bit(make):
    problem, plan = blobs_problem(), plan_of()
    work = work_of([0.01, 0.1, 1.0], 12, seeds=(0, 1))
    with SerialEngine(problem, plan) as oracle, make(problem, plan) as engine:
        assert_same(make, gather(engine, work)[0], gather(oracle, work)[0])


def test_failures_are_values_and_touch_no_other_trial(make):
    problem, plan = raising_at_large_rates(), plan_of(steps=30, rungs=(10, 20))
    work = work_of([0.01, 5.0, 0.1, 1e30], 30)
    with SerialEngine(problem, plan) as oracle, make(problem, plan) as engine:
        ours, states = gather(engine, work)
        assert_same(make, ours, gather(oracle, work)[0], 30)
    failures = {trial.lr: bursts[-1].failure for trial, bursts in ours.items()}
    assert failures[0.01] is None is failures[0.1]
    assert failures[5.0].cause == "exception"
    assert failures[1e30] is not None
    assert states[TrialId(5.0, 0)] is None


class UntellableError(Exception):
    """An exception of a user's that no other process can have, and whose text raises."""

    def __init__(self):
        super().__init__("never told")
        self.kept = lambda: None

    def __str__(self):
        raise ValueError("no text")

    def __reduce__(self):
        raise TypeError("no pickle")


class Abandon(BaseException):
    """What a user raises past every `except Exception`."""


@pytest.mark.parametrize("kind", [UntellableError, Abandon, SystemExit, GeneratorExit])
def test_whatever_an_exception_is_it_ends_its_own_trial_only(make, kind):
    if make is StackedEngine:
        pytest.skip("what a stack does about exceptions is in test_stack_failures")
    kinds = {"raised": kind}

    def loss(model, batch):
        if model.training and model.weight.abs().max() > 50:
            raise kinds["raised"]()
        return (model(batch[0]) - batch[1]).square().mean()

    problem, plan = line_problem(loss=loss), plan_of(steps=30, rungs=(10, 20))
    with make(problem, plan) as engine:
        ours, _ = gather(engine, work_of([0.01, 5.0, 0.1], 30))
    failures = {trial.lr: bursts[-1].failure for trial, bursts in ours.items()}
    assert failures[0.01] is None is failures[0.1]
    assert failures[5.0].cause == "exception"
    assert failures[5.0].message


def test_a_trial_paused_and_resumed_is_the_one_never_paused(make):
    problem, plan = blobs_problem(), plan_of()
    with make(problem, plan) as engine:
        whole, _ = gather(engine, work_of([0.01, 0.1], 12))
        first, states = gather(engine, work_of([0.01, 0.1], 6))
        assert all(state is not None for state in states.values())
        rest, ended = gather(engine, [Work(t, 12, 6, state) for t, state in states.items()])
    assert all(state is None for state in ended.values())
    for trial, bursts in whole.items():
        ours = merge(trial, 12, [*first[trial], *rest[trial]])
        theirs = merge(trial, 12, bursts)
        assert_same_losses(make, ours.loss.tolist(), theirs.loss.tolist())
        held_out = [h.evaluation("test").loss for h in (ours, theirs)]
        assert_same_losses(make, *held_out)


def test_a_stop_ends_the_step_in_progress_and_the_trial_goes_on_from_there(make):
    problem, plan = blobs_problem(), plan_of(steps=4000, rungs=(4000,))
    trial, seen = TrialId(0.01, 0), []
    with make(problem, plan) as engine:
        stopped, states = gather(
            engine,
            [Work(trial, 4000)],
            tick=lambda *_: seen.append(None),
            stopping=lambda: bool(seen),
        )
        step = sum(len(b.loss) for b in stopped[trial])
        assert 0 < step < 4000
        assert not any(b.evaluations for b in stopped[trial])
        rest, _ = gather(engine, [Work(trial, step + 5, step, states[trial])])
    with SerialEngine(problem, plan) as oracle:
        whole, _ = gather(oracle, [Work(trial, step + 5)])
    ours = [loss for b in (*stopped[trial], *rest[trial]) for loss in b.loss]
    assert_same_losses(make, ours, [loss for b in whole[trial] for loss in b.loss])


def test_cancelling_leaves_no_process_and_the_engine_usable(make):
    before = children(os.getpid())
    problem, plan = blobs_problem(), plan_of()
    with make(problem, plan) as engine:
        running = engine.run(work_of([0.01, 0.1, 1.0], 12))
        next(running)
        running.close()
        assert children(os.getpid()) == before
        bursts, _ = gather(engine, work_of([0.01], 12))
    assert bursts[TrialId(0.01, 0)][-1].stop == 12
    assert children(os.getpid()) == before


def test_an_exception_where_the_bursts_go_leaves_no_process(make):
    before = children(os.getpid())
    problem, plan = blobs_problem(), plan_of()

    def fail_at_the_first_burst():
        with make(problem, plan) as engine:
            for _ in engine.run(work_of([0.01, 0.1, 1.0], 12)):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_the_first_burst()
    assert children(os.getpid()) == before


def test_work_is_asked_for_only_when_there_is_room(make):
    problem, plan = blobs_problem(), plan_of()
    asked, most = [], 0

    def work():
        for piece in work_of([0.01, 0.02, 0.03, 0.04, 0.05, 0.06], 12):
            asked.append(piece.trial)
            yield piece

    ended = 0
    with make(problem, plan) as engine:
        for burst, _ in engine.run(work()):
            ended += burst.stop == 12
            most = max(most, len(asked) - ended)
    assert ended == 6
    assert most <= engine.at_once


def test_ticks_tell_rising_steps_of_the_trials_at_work(make):
    problem, plan = blobs_problem(), plan_of(steps=400, rungs=(400,))
    ticks = {}
    with make(problem, plan) as engine:
        gather(
            engine,
            work_of([0.01, 0.1], 400),
            tick=lambda trial, step, loss, metric: ticks.setdefault(trial, []).append(step),
        )
    assert set(ticks) == {TrialId(0.01, 0), TrialId(0.1, 0)}
    for steps in ticks.values():
        assert steps == sorted(set(steps))
        assert steps[-1] <= 400


def test_an_existing_model_and_the_callers_settings_stay_as_they_are(make):
    model = nn.Linear(1, 1)
    before = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    threads = torch.get_num_threads()
    with make(line_problem(model=model), plan_of()) as engine:
        gather(engine, work_of([0.1], 12))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
