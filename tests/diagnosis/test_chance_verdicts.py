"""Verdicts of single trials against chance."""

import math
from dataclasses import replace

import numpy as np
import pytest
from diagnosis.written_histories import CHANCE, REGRESSION, diverged, evaluation, history
from hypothesis import given, settings
from hypothesis import strategies as st

from etascope.diagnosis.chance import judge_alone
from etascope.diagnosis.verdict import judge
from etascope.records import Chance, Failure, TrialId

FEW = Chance(0.69, "constant prediction", (0.69,) * 20, ((40, 0.5), (1000, 0.9)))
UNTRAINED = Chance(1.0, "initial loss", (1.0, 1.1, 0.9, 1.05, 0.95) * 4)


def judged(*trials, chance=CHANCE):
    return judge(trials, chance, 100).rates


def with_hits(lr, loss, correct, examples, **options):
    made = history(lr, loss, 0.5, **options)
    found = replace(
        made.evaluations[0], metric=correct / examples, correct=correct, examples=examples
    )
    return replace(made, evaluations=(found,))


def test_a_loss_clearly_below_chance_learns_where_hits_cannot_tell():
    """Nine in ten are of one class: an accuracy of 0.905 shows nothing, half the loss does."""
    imbalanced = Chance(0.325, "constant prediction", (0.325,) * 20, ((1000, 0.9),))
    found = judged(with_hits(0.1, 0.16, 905, 1000), chance=imbalanced)
    assert found[0.1].name == "best"
    alone = judge_alone([with_hits(0.1, 0.16, 905, 1000)], imbalanced, 100, 0.05)
    evidence = alone[TrialId(0.1, 0)].evidence
    assert evidence["p_accuracy"] > 0.2
    assert evidence["p_loss"] < 1e-6
    assert evidence["p_chance"] == pytest.approx(2 * evidence["p_loss"])


def test_hits_clearly_above_chance_learn_where_the_loss_is_above_it():
    assert judged(history(0.1, 8.0, 0.9, peak=7e6))[0.1].name == "best"


def test_at_chance_by_both_the_reason_names_both():
    reason = judged(history(0.5, 2.36, 0.101, peak=7e6), history(0.1, 0.1, 0.97))[0.5].reason
    assert "accuracy 0.101 is not significantly above 0.112" in reason
    assert "nor held-out loss 2.36 below 2.30, the loss of the best constant" in reason


def test_the_untrained_networks_loss_is_not_asked_beside_hits():
    only = replace(CHANCE, source="initial loss")
    found = judged(history(0.5, 1.0, 0.1, peak=99), history(0.1, 0.1, 0.97), chance=only)
    assert found[0.5].name == "stuck"
    assert "p_loss" not in found[0.5].evidence
    assert "held-out loss" not in found[0.5].reason


def test_one_held_out_batch_leaves_the_test_of_hits_its_full_level():
    lonely = with_hits(0.1, 0.6, 30, 40)
    lonely = replace(lonely, evaluations=(replace(lonely.evaluations[0], batch_losses=(0.6,)),))
    evidence = judge_alone([lonely], FEW, 100, 0.05)[TrialId(0.1, 0)].evidence
    assert evidence["p_chance"] == evidence["p_accuracy"]


@settings(max_examples=30)
@given(share=st.floats(0.1, 0.9), seed=st.integers(0, 10**6))
def test_both_tests_together_are_never_surer_than_the_surer_one(share, seed):
    chance = Chance(1.0, "constant prediction", (1.0,) * 20, ((1000, share),))
    found = evaluation(100, 0.99, share, noise=0.1, seed=seed)
    made = replace(history(0.1, 1.0), evaluations=(found,))
    evidence = judge_alone([made], chance, 100, 0.05)[TrialId(0.1, 0)].evidence
    pair = evidence["p_accuracy"], evidence["p_loss"]
    assert min(pair) <= evidence["p_chance"] <= min(1.0, 2 * min(pair))


def test_networks_that_know_nothing_are_seldom_called_learners():
    """2 000 trials that guess at random by both tests: at most alpha of them learn."""
    rng, chance = np.random.default_rng(0), Chance(1.0, "given", (), ((200, 0.3),))
    hits = 0
    for _ in range(2000):
        losses = tuple(rng.normal(1.0, 0.2, 10))
        made = with_hits(0.1, float(np.mean(losses)), int(rng.binomial(200, 0.3)), 200)
        found = replace(made.evaluations[0], batch_losses=losses)
        alone = judge_alone([replace(made, evaluations=(found,))], chance, 100, 0.05)
        hits += alone[TrialId(0.1, 0)].name == "good"
    assert hits / 2000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_too_few_held_out_examples_are_no_evidence_of_being_stuck():
    few = judged(with_hits(0.5, 0.7, 24, 40, peak=99), chance=FEW)[0.5]
    assert few.name == "undecided"
    assert "accuracy may be as high as 0.751: too few held-out examples to tell (40)" in few.reason
    many = judged(with_hits(0.5, 0.7, 905, 1000, peak=99), chance=FEW)[0.5]
    assert many.name == "stuck"


def test_too_few_held_out_examples_do_not_make_a_rate_too_slow_either():
    small = Chance(1.6, "constant prediction", (1.6,) * 20, ((5, 0.2), (1000, 0.2)))
    found = judged(with_hits(0.01, 1.6, 2, 5), history(0.1, 0.1, 0.97), chance=small)
    assert found[0.01].name == "undecided"


def noisy(lr, loss, batches, **options):
    found = replace(evaluation(100, loss), correct=None, metric=None, batch_losses=tuple(batches))
    return replace(history(lr, loss, start=1.0, **options), evaluations=(found,))


def test_a_held_out_loss_that_scatters_too_much_is_undecided():
    wide = noisy(1.0, 0.95, [0.1, 1.8, 0.2, 1.7], peak=50.0)
    learns = history(0.1, 0.2, start=1.0)
    found = judged(wide, learns, chance=REGRESSION)[1.0]
    assert found.name == "undecided"
    assert "too few held-out examples to tell (1\u202f000)" in found.reason
    assert found.evidence["possible"] < found.evidence["half_way"] == pytest.approx(0.6)


def test_a_loss_far_above_chance_in_every_batch_is_stuck_however_it_scatters():
    wild = noisy(1.0, 1e8, [*np.geomspace(3.0, 1e3, 19), 2e9], peak=1e9)
    assert judged(wild, history(0.1, 0.2, start=1.0), chance=REGRESSION)[1.0].name == "stuck"


def flat(lr, losses, chance_loss=1.0):
    """A trial at chance whose training losses are `losses`."""
    made = history(lr, chance_loss, start=1.0, step=len(losses), target=100)
    return replace(made, loss=np.asarray(losses, dtype=float))


def beside_a_learner(trial, chance=REGRESSION):
    return judged(trial, history(0.1, 0.2, start=1.0), chance=chance)[trial.trial.lr]


def test_one_noisy_batch_is_no_rise():
    losses = np.ones(100)
    losses[50] = 40.0
    found = beside_a_learner(flat(0.01, losses))
    assert found.name == "too slow"
    assert "never rose far for long (peak: 40.0 at step 50)" in found.reason


def test_a_first_batch_that_was_easy_makes_no_rise_of_the_others():
    losses = np.ones(100)
    losses[0] = 0.01
    assert beside_a_learner(flat(0.01, losses)).name == "too slow"


def test_the_descent_from_a_high_start_is_no_rise():
    losses = np.concatenate([np.geomspace(50.0, 1.0, 6), np.ones(94)])
    assert beside_a_learner(flat(0.01, losses)).name == "too slow"
    losses[60:70] = 30.0
    again = beside_a_learner(flat(0.01, losses))
    assert again.name == "stuck"
    assert "had risen to 30.0 at step 60" in again.reason


def test_a_rise_at_the_first_update_that_is_soon_over_is_seen():
    """The first losses of the built-in experiment at a rate of 0.1."""
    losses = [10.3, 13119.9, 454.1, 8.5, 4.3, 5.8, 4.0, 2.9, 3.1, 2.8, *np.full(90, 2.3)]
    crawls = replace(history(0.01, 2.31, 0.103), loss=np.array(losses))
    found = judged(crawls, history(0.1, 0.1, 0.97))[0.01]
    assert found.name == "stuck"
    assert "had risen to 13\u202f120 at step 1" in found.reason


@pytest.mark.parametrize("first", [1, 3, 8, 60])
def test_a_rise_is_seen_wherever_it_begins(first):
    """At a rate far too high the loss rises within the first steps, and may stay there."""
    losses = np.ones(100)
    losses[first:] = 50.0
    found = beside_a_learner(flat(0.01, losses))
    assert found.name == "stuck"
    assert f"had risen to 50.0 at step {first}" in found.reason


def test_a_rise_of_losses_below_zero_is_told_by_their_scatter():
    likelihood = Chance(-3.0, "constant prediction", tuple(x - 4 for x in REGRESSION.batch_losses))
    noise = np.random.default_rng(0).normal(0, 0.1, 100)
    learns = replace(history(0.1, -9.0, start=-3.0), loss=np.linspace(-3, -9, 100))
    for level, name in ((0.0, "too slow"), (5.0, "stuck")):
        losses = -3.0 + noise
        losses[4:20] += level
        trial = flat(0.01, losses, chance_loss=-3.0)
        assert judged(trial, learns, chance=likelihood)[0.01].name == name


@given(shift=st.floats(-50, -5), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_a_rise_below_zero_does_not_depend_on_where_zero_is(shift, seed):
    rng = np.random.default_rng(seed)
    losses = rng.normal(0, 0.1, 100)
    losses[20:30] += 10 * rng.random()

    def name(by):
        chance = Chance(by, "constant prediction", tuple(by + 0.1 * x for x in range(-2, 3)) * 4)
        learns = replace(history(0.1, by - 6.0), loss=np.linspace(by, by - 6, 100))
        return judged(flat(0.01, losses + by, chance_loss=by), learns, chance=chance)[0.01].name

    assert name(-5.0) == name(shift)


def test_without_a_loss_of_knowing_nothing_the_reasons_say_what_learning_means():
    found = judged(
        history(0.1, 0.2, start=1.0),
        history(0.2, 0.201, start=1.0),
        history(1.0, 1.02, start=1.0, peak=50.0),
        chance=UNTRAINED,
    )
    for lr, name in ((0.1, "best"), (0.2, "good")):
        assert found[lr].name == name
        assert "better than chance only means better than the untrained network" in found[lr].reason
    assert found[1.0].name == "stuck"
    assert "the loss of the untrained network, which is all that is known" in found[1.0].reason
    known = judged(history(0.1, 0.2, start=1.0), chance=REGRESSION)
    assert "untrained" not in known[0.1].reason


def test_a_seed_that_learns_says_over_what():
    trials = [diverged(0.1, 0), diverged(0.1, 1), history(0.1, 0.2, start=1.0, seed=2)]
    of_seed = judge(trials, UNTRAINED, 100).trials[TrialId(0.1, 2)]
    assert of_seed.reason.startswith("this seed does better than the untrained network, but")


@pytest.mark.parametrize("cause", ["exception", "data", "worker"])
def test_what_the_rate_did_not_do_is_undecided_and_says_what_helps(cause):
    failure = Failure(3, cause, None, "it broke", "mend it")
    broken = replace(history(0.1, 1.0), evaluations=(), failure=failure)
    found = judged(broken, history(0.01, 0.1, 0.97))[0.1]
    assert found.name == "undecided"
    assert found.reason == "it broke; remedy: mend it"


def test_a_diverged_trial_says_what_helps():
    reason = judged(diverged(0.1))[0.1].reason
    assert reason == "the training loss became nan; remedy: lower the rate"


def test_a_seed_that_failed_beside_one_that_cannot_be_told_is_not_called_luck():
    few = with_hits(0.5, 0.7, 24, 40, seed=1, peak=99)
    reason = judged(diverged(0.5, 0), few, chance=FEW)[0.5].reason
    assert reason.startswith("1 of 2 seeds failed, others cannot be told: held-out accuracy 0.600")
