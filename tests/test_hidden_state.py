"""A trial is the same however it is paused, evaluated or repeated, whatever keeps state in it."""

import hidden
import pytest
from hidden import CARRIED, SEEDED, Points
from small import blobs_problem

import etascope as es
from etascope.plan import Plan
from etascope.records import TrialId
from etascope.rehearsal import rehearse
from etascope.state import pack, unpack
from etascope.trial import Trial

ACCURACY = blobs_problem().metric
BLOBS = blobs_problem().train


def plan_of(steps=9, **options):
    return Plan(steps=steps, optimizer="adam", rungs=(steps,), **options)


def train(problem, stops=(9,), *, lr=0.01, steps=9, **options):
    """The losses and the last evaluations of a trial that is paused and evaluated at `stops`."""
    plan = plan_of(steps, **options)
    state, losses, trial = None, [], None
    for stop in (*stops, steps) if stops[-1] != steps else stops:
        trial = Trial(problem, plan, TrialId(lr, 0), state)
        burst = trial.advance(stop)
        assert burst.failure is None, burst.failure
        losses += burst.loss
        state = unpack(pack(trial.state()))
    weights = {name: tensor.tolist() for name, tensor in state.model.items()}
    return losses, burst.evaluations, weights


@pytest.mark.parametrize("kind", CARRIED)
def test_what_a_model_keeps_goes_on_after_a_pause_and_an_evaluation_leaves_no_trace(kind):
    problem = blobs_problem(model=CARRIED[kind])
    whole = train(problem)
    assert train(problem, (1, 2, 3, 7)) == whole
    assert train(problem, probe_every=1) == whole
    bare = blobs_problem(model=CARRIED[kind], metric=None)
    assert train(bare, (4,))[::2] == whole[::2]


@pytest.mark.parametrize("kind", CARRIED)
def test_the_door_lets_it_pass(kind):
    rehearse(blobs_problem(model=CARRIED[kind]), plan_of(), TrialId(0.01, 0))


@pytest.mark.parametrize("kind", SEEDED)
def test_generators_of_a_dataset_give_every_rate_the_same_data_in_any_order(kind):
    def losses(*rates):
        problem = blobs_problem(train=Points(BLOBS, SEEDED[kind]()))
        rehearse(problem, plan_of(), TrialId(0.01, 0))
        return {lr: train(problem, lr=lr) for lr in rates}

    assert losses(0.01, 0.1) == losses(0.1, 0.01)
    problem = blobs_problem(train=Points(BLOBS, SEEDED[kind]()))
    rehearse(problem, plan_of(), TrialId(0.01, 0))
    assert train(problem, (2, 5), lr=0.01) == losses(0.01)[0.01]


@pytest.mark.parametrize("kind", ["Caching"])
def test_a_cache_that_makes_no_difference_is_not_refused(kind):
    problem = blobs_problem(train=Points(BLOBS, getattr(hidden, kind)()))
    rehearse(problem, plan_of(), TrialId(0.01, 0))


@pytest.mark.parametrize(
    ("kind", "name"), [("Alternating", "train.dataset.noise.calls"), ("Remembering", "cache")]
)
def test_data_that_depend_on_what_was_drawn_before_are_refused_by_name(kind, name):
    problem = blobs_problem(train=Points(BLOBS, getattr(hidden, kind)()))
    with pytest.raises(es.UsageError, match=f"training batches .*{name}"):
        rehearse(problem, plan_of(), TrialId(0.01, 0))
