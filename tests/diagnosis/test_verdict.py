"""Verdicts of synthetic records: what is said must follow from what is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from diagnosis.written_histories import (
    CHANCE,
    REGRESSION,
    diverged,
    evaluation,
    history,
    names,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from etascope.diagnosis.verdict import judge
from etascope.records import Failure, TrialId


def test_the_built_in_experiment_reads_as_it_should():
    found = judge(
        [
            history(1e-5, 0.9, 0.70),
            history(1e-3, 0.06, 0.985, peak=18),
            history(0.5, 2.36, 0.101, peak=7e6),
            diverged(10.0),
        ],
        CHANCE,
        100,
    )
    assert {lr: v.name for lr, v in found.rates.items()} == {
        1e-5: "too slow",
        1e-3: "best",
        0.5: "stuck",
        10.0: "diverged",
    }
    assert found.best == 1e-3
    assert found.band == (1e-3, 1e-3)
    stuck = found.rates[0.5]
    assert stuck.evidence["valid_metric"] == 0.101
    assert stuck.evidence["majority_share"] == 0.112
    assert stuck.evidence["peak_loss"] == 7e6
    assert stuck.evidence["p_chance"] > 0.5


def test_a_catapult_that_recovers_is_no_failure():
    assert names([history(0.01, 0.06, 0.985, peak=7e6)]) == {0.01: "best"}


def test_a_rate_that_has_not_left_chance_yet_is_too_slow_only_below_a_learner():
    crawls = history(1e-8, 11.9, 0.10, start=12.0)
    assert names([crawls, history(1e-3, 0.1, 0.97)])[1e-8] == "too slow"
    assert names([crawls]) == {1e-8: "undecided"}
    above = history(1.0, 11.9, 0.10, start=12.0)
    assert names([above, history(1e-3, 0.1, 0.97)])[1.0] == "stuck"


def test_near_the_edge_a_small_rate_may_be_stuck_where_a_larger_one_learns():
    found = names([history(1e-2, 2.31, 0.103, peak=108), history(3e-2, 0.3, 0.92, peak=700)])
    assert found == {1e-2: "stuck", 3e-2: "best"}


def test_rates_within_the_tolerance_are_good_and_form_the_band():
    found = judge(
        [
            history(1e-4, 0.5, 0.85),
            history(3e-4, 0.07, 0.98),
            history(1e-3, 0.06, 0.98),
            history(3e-3, 0.065, 0.98),
            history(1e-2, 0.4, 0.90),
        ],
        CHANCE,
        100,
    )
    assert [v.name for v in found.rates.values()] == [
        "too slow",
        "good",
        "best",
        "good",
        "undecided",
    ]
    assert found.band == (3e-4, 3e-3)
    assert "smaller rate does better" in found.rates[1e-2].reason


def test_a_gap_that_the_noise_could_have_made_is_undecided():
    rough = history(3e-4, 0.12, 0.97)
    wobble = np.random.default_rng(3).normal(0, 0.3, 20)
    noisy = replace(rough.evaluations[0], batch_losses=tuple(0.12 + wobble - wobble.mean()))
    found = judge([replace(rough, evaluations=(noisy,)), history(1e-3, 0.06, 0.98)], CHANCE, 100)
    verdict = found.rates[3e-4]
    assert verdict.name == "undecided"
    assert verdict.evidence["gap_low"] < verdict.evidence["gap_allowed"]
    assert verdict.evidence["gap_high"] > verdict.evidence["gap_allowed"]
    assert "more seeds" in verdict.reason


def test_seeds_that_fail_count():
    fine = [history(0.1, 0.1, 0.97, seed=s) for s in range(3)]
    some = [diverged(0.3, 0), history(0.3, 0.05, 0.98, seed=1), history(0.3, 0.05, 0.98, seed=2)]
    most = [diverged(0.9, 0), diverged(0.9, 1), history(0.9, 0.05, 0.98, seed=2)]
    found = judge([*fine, *some, *most], CHANCE, 100)
    assert found.best == 0.1, "a rate of which a seed failed is never best"
    assert found.rates[0.3].name == "undecided"
    assert "1 of 3 seeds failed" in found.rates[0.3].reason
    assert found.rates[0.9].name == "diverged"
    assert found.trials[TrialId(0.9, 2)].name == "undecided"


def test_seeds_are_compared_pair_by_pair():
    """Seeds differ by ten times the gap between the rates, and still it is seen."""
    luck = [0.0, 1.0, 0.5, 0.2]
    slow = [history(0.01, 0.20 + x, 0.9, seed=s) for s, x in enumerate(luck)]
    fast = [history(0.1, 0.10 + x, 0.9, seed=s) for s, x in enumerate(luck)]
    found = judge([*slow, *fast], CHANCE, 100)
    assert found.rates[0.01].name == "too slow"
    assert found.rates[0.01].evidence["gap"] == pytest.approx(0.1)


def test_the_rates_of_a_race_are_compared_by_the_seed_that_all_of_them_have():
    pair = [history(0.01, 0.10, 0.97), history(0.1, 0.30, 0.92)]
    fresh = [
        history(0.02, 0.05, 0.98, seed=1),  # lower than the best, but of a luckier seed
        history(0.05, 0.05, 0.98, seed=1),
        history(0.1, 0.05, 0.98, seed=1),
        diverged(0.9, seed=1),
    ]
    found = judge([*pair, *fresh], CHANCE, 100, seed=0, confirmed=0.02)
    told = {lr: verdict.name for lr, verdict in found.rates.items()}
    assert found.best == 0.01
    assert told == {
        0.01: "best",
        0.02: "good",
        0.05: "undecided",
        0.1: "undecided",
        0.9: "diverged",
    }
    assert "a smaller rate does better" in found.rates[0.1].reason
    assert "no pair" in found.rates[0.05].reason
    assert found.band == (0.01, 0.02)
    assert {t: v.name for t, v in found.trials.items() if t.lr < 0.9} == {
        h.trial: told[h.trial.lr] for h in [*pair, *fresh] if h.trial.lr < 0.9
    }


def test_a_paused_rate_is_compared_at_its_own_step_and_stays_provisional():
    early = evaluation(20, 0.5, 0.9)
    runs = history(1e-3, 0.06, 0.98)
    runs = replace(runs, evaluations=(early, *runs.evaluations))
    found = judge(
        [
            runs,
            history(1e-4, 1.5, 0.6, step=20, target=20),
            history(3e-3, 0.4, 0.91, step=20, target=20),
            history(0.5, 2.4, 0.1, step=20, target=20, peak=1e5),
        ],
        CHANCE,
        100,
    )
    assert found.best == 1e-3
    assert found.rates[1e-4].name == "too slow"
    assert found.rates[1e-4].provisional
    assert found.rates[1e-4].step == 20
    assert found.rates[1e-4].evidence["gap"] == pytest.approx(1.1)
    assert found.rates[3e-3].name == "undecided"
    assert "worth training on" in found.rates[3e-3].reason
    assert found.rates[0.5].name == "stuck"
    assert found.rates[0.5].provisional
    assert not found.rates[1e-3].provisional


def test_without_classes_the_held_out_loss_is_what_counts():
    found = names(
        [history(0.1, 0.2, start=1.0), history(1.0, 1.02, start=1.0, peak=50.0)], REGRESSION
    )
    assert found == {0.1: "best", 1.0: "stuck"}


@pytest.mark.parametrize(("loss", "name"), [(0.2, "best"), (0.99, "undecided"), (1.4, "stuck")])
def test_one_held_out_batch_is_judged_by_how_far_it_lies_from_the_baseline(loss, name):
    trained = replace(history(0.1, loss, start=1.0), evaluations=())
    trained = replace(trained, loss=np.where(np.arange(100) % 2, 1.0, 1.01))
    single = replace(evaluation(100, loss), batch_losses=(loss,))
    learns = history(0.01, 0.2, start=1.0)
    chance = replace(REGRESSION, batch_losses=())
    others = [] if name == "best" else [learns]
    found = judge([replace(trained, evaluations=(single,)), *others], chance, 100)
    assert found.rates[0.1].name == name
    assert ("several batches" in found.rates[0.1].reason) is (name == "undecided")


def test_all_failed_has_no_best_and_an_unfinished_study_no_verdict():
    found = judge([diverged(0.1), diverged(0.2)], CHANCE, 100)
    assert found.best is None
    assert found.band is None
    pending = replace(history(0.1, 1.0), loss=np.array([]), evaluations=())
    assert names([pending]) == {0.1: "undecided"}
    assert judge([], CHANCE, 100).rates == {}


def test_an_exception_is_nothing_that_the_rate_did():
    failure = Failure(3, "exception", None, "RuntimeError: out of memory", "mend it")
    broken = replace(history(0.1, 1.0), evaluations=(), failure=failure)
    found = judge([broken, history(0.01, 0.1, 0.97)], CHANCE, 100)
    assert found.rates[0.1].name == "undecided"
    assert "out of memory" in found.rates[0.1].reason


losses = st.floats(0.01, 5.0)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from([1e-4, 1e-3, 1e-2, 0.1]), losses, st.floats(0, 1)),
        min_size=1,
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_judging_is_pure_and_does_not_depend_on_order(trials, shuffler):
    made = [history(lr, loss, acc, seed=seed) for seed, (lr, loss, acc) in enumerate(trials)]
    shuffled = list(made)
    shuffler.shuffle(shuffled)
    one, two = judge(made, CHANCE, 100), judge(shuffled, CHANCE, 100)
    assert one.best == two.best
    assert {lr: v.name for lr, v in one.rates.items()} == {
        lr: v.name for lr, v in two.rates.items()
    }
    assert one.trials.keys() == two.trials.keys() == {h.trial for h in made}
    for verdict in (*one.rates.values(), *one.trials.values()):
        assert verdict.reason
        assert not any(isinstance(x, float) and math.isnan(x) for x in verdict.evidence.values())
