"""What shows that a trial learned, on simulated and on real trainings."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diagnosis.written_histories import REGRESSION, evaluation, history
from small import blobs_problem
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import etascope as es
from etascope.diagnosis.chance import failed
from etascope.diagnosis.learning import ALONE, evidence_of, learned, likelihood_p, metric_p
from etascope.records import Chance, Evaluation


def losses_of(scores, labels):
    """[example] cross entropies of rows of scores."""
    top = scores - scores.max(1, keepdims=True)
    logs = top - np.log(np.exp(top).sum(1, keepdims=True))
    return -logs[np.arange(len(labels)), labels]


def held_out(labels, losses, hits, batches):
    """An evaluation and the baseline of the best constant, on the same batches."""
    shares = np.bincount(labels) / len(labels)
    constant = -np.log(shares[labels])
    parts = np.array_split(np.arange(len(labels)), batches)
    n = len(labels)
    chance = Chance(
        float(constant.mean()),
        "constant prediction",
        tuple(float(constant[part].mean()) for part in parts),
        ((n, float(shares.max())),),
        likelihood=1.0,
    )
    means = tuple(float(losses[part].mean()) for part in parts)
    found = Evaluation(100, "valid", float(losses.mean()), hits / n, n, hits, means)
    return found, chance


@pytest.mark.parametrize("shares", [(0.98, 0.02), (0.995, 0.005), (0.5, 0.5), (0.2,) * 5])
@pytest.mark.parametrize(("batches", "examples"), [(1, 19), (2, 40), (10, 200), (40, 800)])
def test_outputs_that_do_not_depend_on_the_labels_seldom_learn(shares, batches, examples):
    """400 networks that know the shares of the classes at best, at four spreads of outputs."""
    rng, alarms, trials = np.random.default_rng(0), 0, 400
    trained = history(0.1, 1.0)
    for number in range(trials):
        shift, noise = ((0.02, 0.05), (0.1, 0.1), (0.3, 0.3), (0.3, 2.0))[number % 4]
        labels = rng.choice(len(shares), size=examples, p=shares)
        scores = np.log(shares) + shift * rng.normal(size=len(shares))
        scores = scores + noise * rng.normal(size=(examples, len(shares)))
        hits = int((scores.argmax(1) == labels).sum())
        found, chance = held_out(labels, losses_of(scores, labels), hits, batches)
        alarms += learned(trained, found, chance)
    assert alarms / trials <= ALONE + 3 * math.sqrt(ALONE * (1 - ALONE) / trials)


@pytest.mark.parametrize("tail", ["normal", "heavy"])
@pytest.mark.parametrize("batches", [1, 2, 10])
def test_regressions_that_know_the_mean_alone_seldom_learn(tail, batches):
    rng, alarms, trials = np.random.default_rng(1), 0, 300
    for number in range(trials):
        n = 20 * batches
        draw = rng.normal if tail == "normal" else lambda size: rng.lognormal(0, 2, size)
        targets, noise = draw(size=n), (0.01, 0.1, 1.0)[number % 3]
        outputs = targets.mean() + noise * targets.std() * rng.normal(size=n)
        parts = np.array_split(np.arange(n), batches)
        constant, own = (targets - targets.mean()) ** 2, (targets - outputs) ** 2
        known = tuple(float(constant[part].mean()) for part in parts)
        means = tuple(float(own[part].mean()) for part in parts)
        chance = Chance(float(constant.mean()), "constant prediction", known)
        found = Evaluation(100, "valid", float(own.mean()), None, n, None, means)
        trained = replace(history(0.1, 1.0), loss=(draw(size=(60, 16)) ** 2).mean(1))
        alarms += learned(trained, found, chance)
    assert alarms / trials <= ALONE + 3 * math.sqrt(ALONE * (1 - ALONE) / trials)


def test_rare_positives_that_are_mostly_recognised_are_learned_nearly_always():
    """Four positives in 200: batches and hits show much less than the likelihood."""
    rng, shown, otherwise, trained = np.random.default_rng(2), 0, 0, history(0.1, 1.0)
    for _ in range(200):
        labels = (rng.permutation(200) < 4).astype(int)
        margin = np.where(labels == 1, 0.5, -6.0) + rng.normal(size=200)
        scores = np.stack([np.zeros(200), margin], 1)
        hits = int((scores.argmax(1) == labels).sum())
        found, chance = held_out(labels, losses_of(scores, labels), hits, 10)
        test = evidence_of(trained, found, chance)
        shown += test.p < ALONE
        otherwise += min(test.p_loss, test.p_accuracy) < ALONE / 2
    assert shown > 190
    assert otherwise < shown / 2


def test_the_likelihood_is_that_of_the_same_batches_and_is_not_asked_elsewhere():
    chance = Chance(0.7, "constant prediction", (0.7, 0.6, 0.8), likelihood=0.5)
    found = Evaluation(5, "valid", 0.45, None, 20, None, (0.5, 0.4))
    assert likelihood_p(found, chance) == pytest.approx(math.exp(-0.5 * 20 * 0.2))
    for other in (replace(chance, likelihood=0.0), replace(chance, source="given")):
        assert likelihood_p(found, other) is None
    assert likelihood_p(replace(found, batch_losses=(1e9, 0.1)), chance) == 1.0


# A single held-out batch --------------------------------------------------------------------------


def lone(loss, examples=19, *, chance=2.94, change=0.1):
    """A trial with one held-out batch, whose training loss changes by `change` a step."""
    found = Evaluation(100, "valid", loss, None, examples, None, (loss,))
    losses = 3.0 + change * (np.arange(100) % 2)
    trained = replace(history(0.1, 1.0), loss=losses, evaluations=(found,))
    return trained, found, Chance(chance, "constant prediction", (chance,))


def test_a_single_batch_far_below_the_baseline_has_learned_without_a_p_value():
    for loss, far in ((3.76, False), (2.7, False), (0.98, True), (0.18, True), (0.17, True)):
        trained, found, chance = lone(loss)
        assert learned(trained, found, chance) is far
        assert failed(trained, chance) is not far
    assert evidence_of(*lone(0.18)).p == 1.0


def test_what_a_single_batch_must_gain_grows_with_the_noise_and_falls_with_its_size():
    assert not learned(*lone(0.98, change=0.5))
    assert learned(*lone(2.6, examples=1000, change=0.01))
    assert not learned(*lone(2.6, examples=30, change=0.01))


def test_a_single_batch_of_log_densities_is_told_by_noise_alone():
    trained, found, chance = lone(-5.0, chance=-2.0)
    assert learned(trained, found, chance)
    assert not learned(*lone(-3.0, chance=-2.0))


# The metric ---------------------------------------------------------------------------------------


def scored(metric, *, correct=None, batches=()):
    """An evaluation whose loss says nothing."""
    return replace(
        evaluation(100, 1.02), metric=metric, correct=correct, batch_metrics=tuple(batches)
    )


def by_metric(found, chance, *, higher):
    trained = replace(history(0.1, 1.0), evaluations=(found,))
    return not failed(trained, chance, objective="metric", higher_is_better=higher)


def test_hits_and_errors_are_judged_by_the_same_binomial_test():
    hits = replace(REGRESSION, metrics=((1000, 0.6),))
    errors = replace(REGRESSION, metrics=((1000, 0.4),))
    for right in (550, 600, 630, 650, 950):
        above = metric_p(scored(right / 1000, correct=right), hits, higher_is_better=True)
        wrong = scored(1 - right / 1000, correct=1000 - right)
        assert metric_p(wrong, errors, higher_is_better=False) == pytest.approx(above)
        assert by_metric(scored(right / 1000, correct=right), hits, higher=True) is (right >= 650)
        assert by_metric(wrong, errors, higher=False) is (right >= 650)


@pytest.mark.parametrize("higher", [True, False])
def test_another_metric_is_compared_batch_by_batch(higher):
    sign = 1.0 if higher else -1.0
    known = np.linspace(0.4, 0.6, 20)
    chance = replace(REGRESSION, metrics=((1000, float(known.mean())),), batch_metrics=tuple(known))
    better = known + sign * np.linspace(0.05, 0.2, 20)
    worse = known - sign * np.linspace(0.05, 0.2, 20)
    assert by_metric(scored(float(better.mean()), batches=better), chance, higher=higher)
    assert not by_metric(scored(float(worse.mean()), batches=worse), chance, higher=higher)


def test_where_the_spread_of_a_metric_is_unknown_the_loss_must_agree():
    chance = replace(REGRESSION, metrics=((1000, 0.5),))
    assert not by_metric(scored(0.9), chance, higher=True)  # the loss says nothing
    agreed = replace(scored(0.9), loss=0.2, batch_losses=evaluation(100, 0.2).batch_losses)
    assert by_metric(agreed, chance, higher=True)
    assert not by_metric(replace(agreed, metric=0.3), chance, higher=True)


def test_the_metric_of_the_best_constant_is_recorded_with_its_batches():
    def error(model, batch):
        return (model(batch[0]).softmax(1)[torch.arange(len(batch[1])), batch[1]] - 1).abs()

    problem = blobs_problem(metric=error, higher_is_better=False)
    study = es.sweep(problem, [0.01], steps=60, optimizer="adam", engine="serial")
    chance, found = study.problem.chance, study.trials[0].evaluation("valid")
    ((examples, known),) = chance.metrics
    assert examples == 100
    assert 0.6 < known < 0.7
    assert len(found.batch_metrics) == len(chance.batch_metrics) == len(chance.batch_losses)
    sizes = [len(batch[1]) for batch in problem.held_out("valid")]
    assert np.average(found.batch_metrics, weights=sizes) == pytest.approx(found.metric)
    assert not failed(study.trials[0], chance, objective="metric", higher_is_better=False)


# Real trainings -----------------------------------------------------------------------------------


def test_rare_positives_are_learned_where_no_hit_is_gained(tmp_path):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1200, 8, generator=generator)
    y = (x[:, 0] > 2.1).float()[:, None]
    problem = es.Problem(
        lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)),
        lambda m, b: binary_cross_entropy_with_logits(m(b[0]), b[1]),
        (x[:1000], y[:1000]),
        (x[1000:], y[1000:]),
        metric=lambda m, b: ((m(b[0]) > 0) == (b[1] > 0)).squeeze(1),
    )
    study = es.sweep(problem, [1e-5, 0.02], steps=300, engine="serial", out=tmp_path / "s")
    slow, fast = study.trials
    assert failed(slow, study.problem.chance)
    assert not failed(fast, study.problem.chance)
    assert study.best == 0.02


def test_a_contrastive_loss_on_one_held_out_batch_is_judged_as_its_owner_would(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(269, 8, generator=generator)
    other = x @ torch.randn(8, 8, generator=generator)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(8, 16)

        def forward(self, u, v):
            norm = nn.functional.normalize
            return norm(self.a(u)) @ norm(self.b(v)).T / 0.1

    def batches(seed, epoch):
        order = torch.randperm(250, generator=torch.Generator().manual_seed(97 * seed + epoch))
        return [(x[part], other[part]) for part in order.split(50)]

    problem = es.Problem(
        Two,
        lambda m, b: cross_entropy(m(*b), torch.arange(len(b[0]))),
        train=batches,
        valid=lambda seed, epoch: [(x[250:], other[250:])],
    )
    lrs = [1e-5, 0.01, 0.1]
    study = es.sweep(problem, lrs, steps=200, optimizer="adam", engine="serial", out=tmp_path / "s")
    chance = study.problem.chance
    assert chance.loss == pytest.approx(math.log(19), rel=1e-3)
    assert [failed(trial, chance) for trial in study.trials] == [True, False, False]
    assert study.best in (0.01, 0.1)
    assert study.verdicts[1e-5].name == "too slow"
    assert "p_chance" not in study.judgement.trials[study.trials[1].trial].evidence
