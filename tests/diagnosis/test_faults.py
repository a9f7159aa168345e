"""Failures that no rate can be blamed for, told from those that a rate made."""

import math

import numpy as np
import pytest
from diagnosis.written_histories import CHANCE, evaluation, history
from hypothesis import given
from hypothesis import strategies as st

from etascope.diagnosis.faults import rate_independent
from etascope.diagnosis.verdict import judge
from etascope.records import Burst, Failure, TrialId, merge


def ended(lr, step, *, seed=0, losses=None, at_evaluation=False, cause="non-finite"):
    """A trial that failed after `step` updates, in the loss of the next step or at a rung."""
    curve = np.linspace(2.3, 1.0, step) if losses is None else np.asarray(losses, float)
    what = "the held-out loss became nan" if at_evaluation else "the training loss became nan"
    message = f"{what} after {step} updates; first in the output of layer1"
    failure = Failure(step, cause, "layer1", message, "lower the rate")
    loss = tuple(curve) if at_evaluation else (*curve, math.nan)
    trial = TrialId(lr, seed)
    return merge(trial, 100, [Burst(trial, 0, step, loss, (), (), (), failure, 0.1)])


def running(lr, step, seed=0):
    trial = TrialId(lr, seed)
    losses = tuple(np.linspace(2.3, 1.0, step))
    return merge(trial, 100, [Burst(trial, 0, step, losses, (), (), (), None, 0.1)])


def blamed(*trials):
    """The rates of the trials that the rate is not to blame for."""
    return sorted(trial.lr for trial in rate_independent(trials))


def test_rates_decades_apart_that_fail_at_one_step_fail_by_its_batch():
    trials = [ended(1e-4, 57), ended(1e-2, 57), ended(1.0, 12)]
    assert blamed(*trials) == [1e-4, 1e-2]
    reason = rate_independent(trials)[TrialId(1e-4, 0)]
    assert "became nan after 57 updates, and so at 2 rates from 0.0001 to 0.01" in reason
    assert "look at the training batch of step 57 of seed 0" in reason
    assert "lower" not in reason
    assert "layer1" not in reason


def test_a_rate_that_passes_the_step_acquits_its_batch():
    assert blamed(ended(1e-2, 57), ended(1.0, 57), running(1e-4, 58)) == []
    assert blamed(ended(1e-2, 57), ended(1.0, 57), running(1e-4, 57)) == [1e-2, 1.0]
    assert blamed(ended(1e-2, 57), ended(1.0, 57), ended(1e-4, 80)) == []


def test_neighbouring_rates_that_break_together_break_by_their_rate():
    assert blamed(ended(0.3, 20), ended(1.0, 20)) == []


def test_losses_that_had_risen_are_on_their_way_out():
    def rising(lr, factor):
        return ended(lr, 6, losses=2.0 * factor ** np.arange(6))

    assert blamed(rising(1.0, 10.0), rising(100.0, 1e3)) == []


def test_the_loss_of_the_lowest_rate_is_what_the_others_are_compared_with():
    """All rates jump to the same loss and end at the same rung: what the code does at each."""
    curve = [0.41, 3.99, 3.87, 3.90, 4.24]
    trials = [ended(lr, 5, losses=curve, at_evaluation=True) for lr in (1e-6, 1e-4, 1e-2)]
    assert blamed(*trials) == [1e-6, 1e-4, 1e-2]
    assert "look at the held-out data" in rate_independent(trials)[TrialId(1e-6, 0)]


def test_before_any_update_no_rate_has_acted():
    assert blamed(ended(0.1, 0)) == [0.1]
    assert "before any update" in rate_independent([ended(0.1, 0)])[TrialId(0.1, 0)]


@pytest.mark.parametrize("at_evaluation", [False, True])
def test_where_one_step_is_likely_anyhow_rates_must_lie_further_apart(at_evaluation):
    step = 20 if at_evaluation else 1
    near = [ended(lr, step, at_evaluation=at_evaluation) for lr in (1.0, 10.0, 100.0)]
    assert blamed(*near) == []
    far = [ended(lr, step, at_evaluation=at_evaluation) for lr in (1e-8, 1e-2, 10.0)]
    assert len(blamed(*far)) == 3


def test_seeds_have_batches_of_their_own():
    assert blamed(ended(1e-3, 40, seed=0), ended(0.1, 40, seed=1)) == []
    both = [ended(1e-3, 40), ended(0.1, 40), running(1e-3, 90, seed=1), ended(1.0, 9, seed=1)]
    found = rate_independent(both)
    assert {trial.seed for trial in found} == {0}


def test_other_causes_say_themselves_whose_they_are():
    assert blamed(ended(1e-3, 40, cause="exception"), ended(0.1, 40, cause="exception")) == []


def test_the_verdict_is_undecided_and_no_edge_rests_on_it():
    trials = [ended(1e-4, 57), ended(1e-2, 57), ended(1.0, 12)]
    found = judge(trials, CHANCE, 100).rates
    assert {lr: v.name for lr, v in found.items()} == {
        1e-4: "undecided",
        1e-2: "undecided",
        1.0: "diverged",
    }
    assert "the rate is not to blame" in found[1e-2].reason
    assert found[1e-2].evidence["failed_at"] == 57


@given(
    st.lists(st.tuples(st.floats(-6, 3), st.integers(0, 8), st.booleans()), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_the_answer_does_not_depend_on_the_order_and_never_acquits_what_was_passed(made, shuffler):
    trials = {
        10**lr: ended(10**lr, step) if fails else running(10**lr, step) for lr, step, fails in made
    }
    listed = list(trials.values())
    found = rate_independent(listed)
    shuffler.shuffle(listed)
    assert rate_independent(listed) == found
    furthest = max(h.step for h in listed)
    for trial in found:
        assert trials[trial.lr].step == furthest or trials[trial.lr].step == 0


def test_healthy_trials_beside_a_diverged_one_are_left_alone():
    fine = [history(lr, 0.1, 0.97) for lr in (1e-3, 1e-2)]
    assert evaluation(100, 0.1).loss == 0.1
    assert rate_independent([*fine, ended(1.0, 4)]) == {}
