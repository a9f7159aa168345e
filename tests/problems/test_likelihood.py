"""Cross entropies are recognised by their value, wherever labels and scores stand."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from small import blobs_problem, line_problem
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from etascope.problems.checks import inspect
from etascope.problems.likelihood import best_constant, find_labelling

VOCABULARY = 7


def chance_of(problem):
    return inspect(problem, 1000).chance


def entropy(labels):
    shares = torch.bincount(labels.flatten()) / labels.numel()
    shares = shares[shares > 0]
    return float(-(shares * shares.log()).sum())


def tokens(rows=120, length=9):
    """Tokens of which small ones are more common."""
    draws = torch.rand(rows, length, generator=torch.Generator().manual_seed(0))
    return (draws.square() * VOCABULARY).long()


class Output(OrderedDict):
    """An output as Transformers' models give it: a dict whose keys are attributes too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


@dataclass
class DataOutput:
    loss: torch.Tensor
    logits: torch.Tensor


class TupleOutput(NamedTuple):
    loss: torch.Tensor
    logits: torch.Tensor


class Plain:
    def __init__(self, loss, logits):
        self.loss, self.logits = loss, logits


class LanguageModel(nn.Module):
    """A causal language model that computes its own loss, with the labels shifted inside."""

    def __init__(self, output=Output, *, shift=True, smoothing=0.0):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY)
        nn.init.normal_(self.head.weight, std=3.0)
        self.output, self.shift, self.smoothing = output, shift, smoothing

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.head(self.embed(input_ids))
        scores, wanted = (logits[:, :-1], labels[:, 1:]) if self.shift else (logits, labels)
        loss = cross_entropy(scores.flatten(0, 1), wanted.flatten(), label_smoothing=self.smoothing)
        return self.output(loss=loss, logits=logits)


def language_problem(model, ids, labels, mask=None):
    mask = torch.ones_like(ids) if mask is None else mask
    rows = [
        {"input_ids": i, "attention_mask": m, "labels": y}
        for i, m, y in zip(ids, mask, labels, strict=True)
    ]
    return line_problem(
        model=model, loss=lambda m, b: m(**b).loss, train=rows[:80], valid=rows[80:], batch_size=10
    )


@pytest.mark.parametrize("output", [Output, DataOutput, TupleOutput, Plain])
def test_a_language_model_has_the_entropy_of_the_next_tokens(output):
    ids = tokens()
    chance = chance_of(language_problem(lambda: LanguageModel(output), ids, ids))
    assert chance.source == "constant prediction"
    assert chance.loss == pytest.approx(entropy(ids[80:, 1:]), rel=1e-4)
    assert chance.likelihood == 1.0
    assert sum(chance.train_losses) / 8 == pytest.approx(entropy(ids[:80, 1:]), rel=1e-4)


def test_labels_that_are_not_shifted_count_all():
    ids = tokens()
    problem = language_problem(lambda: LanguageModel(shift=False), ids, ids.flip(1))
    assert chance_of(problem).loss == pytest.approx(entropy(ids[80:]), rel=1e-4)


def test_ignored_positions_are_left_out_and_longer_rows_weigh_more():
    ids = tokens()
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[::2, 5:], mask[::2, 5:] = -100, 0
    chance = chance_of(language_problem(LanguageModel, ids, labels, mask))
    kept = labels[80:, 1:]
    # An evaluation averages over batches, which differ a little in how many labels they hold.
    assert chance.loss == pytest.approx(entropy(kept[kept >= 0]), rel=1e-2)
    # A row of 8 labels beside three of 4 has a share of 8 / 20, where a quarter is usual.
    assert 5 / 8 - 1e-9 <= chance.likelihood < 1


def test_label_smoothing_is_part_of_the_loss_of_the_best_constant():
    ids = tokens()
    chance = chance_of(language_problem(lambda: LanguageModel(smoothing=0.1), ids, ids))
    shares = torch.bincount(ids[80:, 1:].flatten(), minlength=VOCABULARY) / (40 * 8)
    smoothed = 0.9 * shares + 0.1 / VOCABULARY
    assert chance.loss == pytest.approx(float(-(smoothed * smoothed.log()).sum()), rel=1e-4)


def test_a_head_of_zeros_makes_no_other_tensor_look_like_the_labels():
    def model():
        made = LanguageModel()
        nn.init.zeros_(made.head.weight)
        nn.init.zeros_(made.head.bias)
        return made

    ids = tokens()
    assert chance_of(language_problem(model, ids, ids)).loss == pytest.approx(
        entropy(ids[80:, 1:]), rel=1e-4
    )


def test_the_constant_is_no_worse_than_any_other_and_adds_up_by_batch():
    """The best distribution has the lowest cross entropy, batch by batch as an evaluation has."""
    ids = tokens(125)
    problem = language_problem(LanguageModel, ids, ids)
    labelling = find_labelling(problem)
    best = best_constant(problem, labelling)
    labels = [b["labels"][:, 1:].flatten() for b in problem.held_out("valid")]
    assert len(best.batch_losses) == len(labels)
    joined = torch.cat(labels)
    for seed in range(5):
        draws = torch.Generator().manual_seed(seed)
        shares = torch.bincount(joined, minlength=VOCABULARY) / len(joined)
        other = (shares + 0.02 * torch.rand(VOCABULARY, generator=draws)).clamp_min(1e-6)
        other = (other / other.sum()).log()
        assert cross_entropy(other.expand(len(joined), -1), joined) > best.loss


def test_an_auxiliary_loss_is_no_cross_entropy_and_the_baseline_stays_unknown():
    class Routed(LanguageModel):
        def forward(self, **batch):
            found = super().forward(**batch)
            found["loss"] = found["loss"] + 0.01 * found["logits"].square().mean()
            return found

    ids = tokens()
    chance = chance_of(language_problem(Routed, ids, ids))
    assert (chance.source, chance.likelihood) == ("initial loss", 0.0)


def test_a_plain_classifier_is_a_likelihood_and_its_baseline_is_as_before():
    problem = blobs_problem()
    chance = chance_of(problem)
    assert chance.likelihood == 1.0
    assert chance.loss == pytest.approx(entropy(problem.valid[1]), rel=1e-5)


def test_a_model_that_returns_probabilities_has_the_entropy_as_baseline_too():
    problem = blobs_problem(
        model=lambda: nn.Sequential(nn.Linear(2, 3), nn.Softmax(1)),
        loss=lambda m, b: nn.functional.nll_loss(m(b[0]).clamp_min(1e-12).log(), b[1]),
    )
    chance = chance_of(problem)
    assert chance.loss == pytest.approx(entropy(problem.valid[1]), rel=1e-4)
    assert chance.likelihood == 1.0


def weighted(m, b):
    return cross_entropy(m(b[0]), b[1], torch.tensor([5.0, 1.0, 0.2]))


@pytest.mark.parametrize(
    "loss",
    [
        weighted,
        lambda m, b: 100 * cross_entropy(m(b[0]), b[1]),
        lambda m, b: m(b[0]).square().mean(),
    ],
    ids=["class weights", "scaled", "no labels"],
)
def test_what_is_no_plain_likelihood_is_not_taken_for_one(loss):
    assert chance_of(blobs_problem(loss=loss)).likelihood == 0.0


def test_probabilities_of_single_outputs_are_recognised():
    x, y = blobs_problem().valid
    labels = torch.stack([y == 0, y == 2], 1).float()
    problem = blobs_problem(
        model=lambda: nn.Linear(2, 2),
        train=(x, labels),
        valid=(x, labels),
        test=None,
        metric=None,
        loss=lambda m, b: binary_cross_entropy_with_logits(m(b[0]), b[1]),
    )
    shares = labels.mean(0)
    expected = -(shares * shares.log() + (1 - shares) * (1 - shares).log()).mean()
    found = best_constant(problem, find_labelling(problem))
    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    assert found.weight == 1.0
    assert chance_of(problem).loss == pytest.approx(float(expected), rel=1e-5)


def test_a_sum_over_the_labels_of_an_example_counts_for_no_more_than_its_mean():
    images = torch.rand(60, 5, 4, generator=torch.Generator().manual_seed(0))
    labels = (images * 3).long()

    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(3))

        def forward(self, x):
            return x[:, None] * self.scale[:, None, None]

    def loss(model, batch):
        return cross_entropy(model(batch[0]), batch[1], reduction="sum") / len(batch[0])

    problem = line_problem(model=Pixels, loss=loss, train=(images, labels), valid=(images, labels))
    found = best_constant(problem, find_labelling(problem))
    assert found.loss == pytest.approx(20 * entropy(labels), rel=1e-4)
    assert found.weight == pytest.approx(1 / 20)
    assert math.isclose(chance_of(problem).loss, found.loss, rel_tol=1e-3)
