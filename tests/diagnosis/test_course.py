"""What the training losses show: fits, falls, and what would help where nothing was learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diagnosis.written_histories import CHANCE, REGRESSION, diverged, evaluation, history
from small import line_problem
from torch import nn
from torch.nn.functional import cross_entropy

import etascope as es
from etascope.diagnosis.advice import nothing_learned
from etascope.diagnosis.chance import baseline_note, failed, judge_alone
from etascope.diagnosis.course import still_falls, training_fit, welch_below
from etascope.diagnosis.verdict import judge
from etascope.problems.checks import inspect
from etascope.records import Chance, TrialId

KNOWN = replace(REGRESSION, train_losses=(1.0, 1.2, 0.8, 1.1, 0.9, 1.0, 1.1, 0.9, 1.05, 0.95))


def trained(losses, held_out=1.3, lr=0.1):
    """A trial with these training losses whose held-out loss is above the baseline."""
    made = history(lr, held_out, step=len(losses), target=100)
    return replace(made, loss=np.asarray(losses, dtype=float))


def wobbling(level, count=100, scale=0.1, seed=0):
    return level + scale * np.random.default_rng(seed).normal(size=count)


def test_what_fits_its_training_data_has_not_failed_and_the_verdict_says_overfitting():
    fits = trained(np.concatenate([np.linspace(1.5, 0.01, 60), np.full(40, 0.01)]))
    assert training_fit(fits, KNOWN) == (pytest.approx(0.01), pytest.approx(1.0))
    assert not failed(fits, KNOWN)
    verdict = judge([fits], KNOWN, 100).rates[0.1]
    assert verdict.name == "undecided"
    assert "fits its training data (training loss 0.01" in verdict.reason
    assert "overfits, which fewer steps, weight decay or more training data would" in verdict.reason
    assert verdict.evidence["training_baseline"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "losses",
    [
        wobbling(1.0),
        wobbling(0.97),
        np.concatenate([[0.01], wobbling(1.0, 99)]),
        np.concatenate([wobbling(1.0, 99), [0.01]]),
        wobbling(5.0, scale=3.0),
        wobbling(0.5, count=4),
        np.full(100, 1e200),
    ],
    ids=["at it", "by noise", "lucky first", "lucky last", "above", "too short", "huge"],
)
def test_no_fit_is_seen_where_there_is_none(losses):
    assert training_fit(trained(losses), KNOWN) is None
    assert failed(trained(losses), KNOWN)


def test_a_training_set_whose_labels_are_easier_is_no_fit():
    """Half of the held-out labels are of each class, one in twenty of the training labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 3, generator=generator)
    rare = (torch.rand(400, generator=generator) < 0.05).long()
    even = torch.arange(200) % 2
    problem = es.Problem(
        lambda: nn.Linear(3, 2),
        lambda m, b: cross_entropy(m(b[0]), b[1]),
        (x[:400], rare),
        (x[400:], even),
    )
    chance = inspect(problem, 1000).chance
    assert chance.loss == pytest.approx(np.log(2), rel=1e-3)
    assert np.mean(chance.train_losses) < 0.25
    study = es.sweep(problem, [0.05], steps=200, optimizer="adam", engine="serial")
    assert study.trials[0].loss[-20:].mean() < 0.3
    assert failed(study.trials[0], chance)


def test_a_penalty_in_the_loss_is_in_the_baseline_too():
    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().mean() + 5.0

    chance = inspect(line_problem(loss=loss), 1000).chance
    assert np.mean(chance.train_losses) > 5.0
    assert training_fit(trained(wobbling(5.0 + 0.9 * 3, scale=0.01)), chance) is None


def test_an_untrained_network_as_baseline_is_measured_on_training_batches_too():
    def loss(model, batch):  # looks inside the model, so that no constant can be worked out
        return (nn.functional.linear(batch[0], model.weight, model.bias) - batch[1]).square().mean()

    problem = line_problem(loss=loss)
    chance = inspect(problem, 1000).chance
    assert chance.source == "initial loss"
    model = problem.make_model(0)
    first = next(iter(problem.batches(0, 0)))
    assert chance.train_losses[0] == pytest.approx(float(loss(model, first).detach()), rel=1e-5)


def test_records_without_a_training_baseline_show_no_fit():
    fits = trained(np.full(100, 0.01))
    assert training_fit(fits, REGRESSION) is None
    assert failed(fits, REGRESSION)


def test_a_confident_network_is_told_from_one_that_broke():
    """95 % are right, a few are wrong with absurd confidence: a learner, and the reason says so."""
    made = history(0.1, 8.0, 0.95)
    chance = replace(CHANCE, train_losses=(2.3, 2.2, 2.4, 2.3, 2.2))
    made = replace(made, loss=np.concatenate([np.linspace(12, 0.01, 50), np.full(50, 0.01)]))
    assert not failed(made, chance)
    reason = judge([made, history(0.01, 0.2, 0.94)], chance, 100).rates[0.1].reason
    assert "held-out loss, 8.00, is above 2.30" in reason
    assert "at an accuracy of 0.950: some answers are wrong with great confidence" in reason
    calm = judge([history(0.01, 0.2, 0.94)], chance, 100).rates[0.01].reason
    assert "confidence" not in calm


def test_welch_is_students_test_for_equal_samples():
    rng = np.random.default_rng(0)
    low = [welch_below(rng.normal(size=10), rng.normal(size=12)) for _ in range(2000)]
    assert np.mean(np.array(low) < 0.05) == pytest.approx(0.05, abs=0.015)
    assert welch_below(np.array([1.0, 1.0]), np.array([2.0, 2.0])) == 0.0
    assert welch_below(np.array([1e200, 2e200]), np.array([1e250, 3e250])) == 1.0


# What would help ----------------------------------------------------------------------------------


def flat(lr, level=1.0, held_out=1.0):
    return trained(wobbling(level, scale=0.02, seed=int(1e6 * lr) % 97), held_out, lr)


def broke(lr):
    losses = np.ones(100)
    losses[5:30] = 50.0
    return trained(losses, 9.0, lr)


def test_rates_that_sit_at_the_constant_below_those_that_break_need_another_model():
    told = nothing_learned([flat(1e-3), flat(1e-2), flat(0.1), broke(1.0), diverged(10.0)], KNOWN)
    assert "neither more steps nor more examples would change" in told
    assert "outputs and targets have the same shape" in told


def test_what_still_falls_needs_more_steps():
    falling = trained(np.linspace(9.0, 3.0, 100) + wobbling(0, scale=0.05), 3.0, 0.01)
    assert still_falls(falling, KNOWN)
    assert not still_falls(flat(0.01), KNOWN)
    assert "train longer" in nothing_learned([flat(1e-4, 9.0, 9.0), falling, broke(1.0)], KNOWN)


def test_where_the_largest_rate_is_calm_larger_ones_are_named():
    assert (
        nothing_learned([flat(1e-5), flat(1e-4)], KNOWN) == "no rate learns yet: try larger rates"
    )


def test_where_every_rate_broke_smaller_ones_are_named():
    assert "the smallest being 1: try smaller" in nothing_learned(
        [broke(1.0), diverged(9.0)], KNOWN
    )


def test_a_loss_below_the_baseline_that_few_examples_do_not_show_needs_more_of_them():
    hopeful = flat(0.01, held_out=0.8)
    few = replace(evaluation(100, 0.8), correct=None, examples=8, batch_losses=(0.1, 1.9, 0.2, 1.0))
    hopeful = replace(hopeful, evaluations=(few,))
    assert "8 held-out examples do not show it" in nothing_learned([hopeful, broke(1.0)], KNOWN)


def test_held_out_examples_of_one_class_leave_nothing_to_learn():
    single = Chance(0.0, "constant prediction", (0.0, 1e-12, 0.0), ((1000, 1.0),))
    verdict = judge_alone([history(0.1, 0.01, 1.0)], single, 100, 0.05)[TrialId(0.1, 0)]
    assert verdict.name == "undecided"
    assert "give valid examples of every class" in verdict.reason
    assert "longer" not in verdict.reason


def test_no_trial_that_failed_by_code_is_told_to_change_its_rate():
    failure = replace(diverged(0.1).failure, cause="exception", message="it broke")
    ended = replace(diverged(0.1), failure=failure)
    assert "its failures say what to mend" in nothing_learned([ended], KNOWN)
    assert not failed(ended, KNOWN)


def test_an_unknown_baseline_is_said_to_be_one():
    assert baseline_note(Chance(1.0, "initial loss")).startswith("the baseline is unknown")
    assert baseline_note(Chance(1.0, "given")) == baseline_note(KNOWN) == ""
