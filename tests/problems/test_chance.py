"""The loss of knowing nothing: the best constant prediction under the user's own loss."""

import math

import pytest
import torch
from small import blobs_problem, line_problem
from torch import nn

import etascope as es
from etascope.problems.checks import inspect


def check(problem):
    return inspect(problem, 1000)


def entropy(labels):
    shares = torch.bincount(labels.flatten()) / labels.numel()
    return float(-(shares * shares.log()).sum())


def test_for_classes_chance_is_the_entropy_of_the_held_out_labels():
    problem = blobs_problem()
    labels = problem.valid[1]
    shares = torch.bincount(labels) / len(labels)
    chance = check(problem).chance
    assert chance.source == "constant prediction"
    assert chance.loss == pytest.approx(float(-(shares * shares.log()).sum()), rel=1e-5)
    assert dict(chance.majority)[100] == pytest.approx(float(shares.max()))


def test_for_squared_error_chance_is_the_variance_of_the_targets():
    problem = line_problem()
    assert check(problem).chance.loss == pytest.approx(float(problem.valid[1].var(correction=0)))


def test_for_absolute_error_chance_is_the_spread_around_the_median():
    problem = line_problem(loss=lambda m, b: (m(b[0]) - b[1]).abs().mean())
    targets = problem.valid[1]
    expected = float((targets - targets.median()).abs().mean())
    assert check(problem).chance.loss == pytest.approx(expected)


def test_for_tokens_chance_is_the_entropy_of_the_tokens():
    tokens = torch.randint(0, 5, (40, 6), generator=torch.Generator().manual_seed(0))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    problem = line_problem(
        model=lambda: nn.Embedding(5, 5), loss=loss, train=(tokens, tokens), valid=(tokens, tokens)
    )
    shares = torch.bincount(tokens.flatten()) / tokens.numel()
    chance = check(problem).chance
    assert chance.loss == pytest.approx(float(-(shares * shares.log()).sum()), rel=1e-5)
    assert chance.majority == ()


def test_a_given_chance_wins():
    chance = check(line_problem(chance=2.5)).chance
    assert (chance.loss, chance.source) == (2.5, "given")


def test_a_class_weighted_loss_has_the_chance_of_that_loss():
    weight = torch.tensor([10.0, 1.0, 0.1])
    problem = blobs_problem(
        loss=lambda m, b: nn.functional.cross_entropy(
            m(b[0]), b[1], weight, reduction="none"
        ).mean()
    )
    shares = torch.bincount(problem.valid[1]) / len(problem.valid[1]) * weight
    expected = float(-(shares * (shares / shares.sum()).log()).sum())
    assert check(problem).chance.loss == pytest.approx(expected, rel=1e-4)


def test_a_huber_loss_has_a_chance_no_larger_than_that_of_mean_and_median():
    problem = line_problem(loss=lambda m, b: nn.functional.huber_loss(m(b[0]), b[1], delta=0.2))
    targets = problem.valid[1]
    constants = torch.linspace(-3, 3, 6001)[:, None, None].expand(-1, *targets.shape)
    best = min(float(nn.functional.huber_loss(c, targets, delta=0.2)) for c in constants)
    assert check(problem).chance.loss == pytest.approx(best, rel=1e-4)


class Named(nn.Module):
    """Called by keywords, as language models are."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, *, points):
        return self.linear(points)


def mapped(points, labels):
    return [{"points": p, "labels": y} for p, y in zip(points, labels, strict=True)]


def test_mappings_and_keywords_have_a_chance_and_a_majority_too():
    plain = blobs_problem()
    problem = blobs_problem(
        model=Named,
        train=mapped(*plain.train),
        valid=mapped(*plain.valid),
        test=None,
        loss=lambda m, b: nn.functional.cross_entropy(m(points=b["points"]), b["labels"]),
        metric=lambda m, b: m(points=b["points"]).argmax(-1) == b["labels"],
    )
    chance, labels = check(problem).chance, plain.valid[1]
    assert chance.source == "constant prediction"
    assert chance.loss == pytest.approx(entropy(labels), rel=1e-4)
    assert dict(chance.majority)[100] == float(labels.bincount().max()) / 100


def test_the_hits_of_knowing_nothing_are_counted_by_the_metric_itself():
    problem = blobs_problem(
        metric=lambda m, b: (m(b[0]).topk(2).indices == b[1][:, None]).any(1),
    )
    counts = problem.valid[1].bincount().sort(descending=True).values
    assert dict(check(problem).chance.majority)[100] == pytest.approx(float(counts[:2].sum()) / 100)


def test_an_error_counted_per_example_is_no_accuracy():
    problem = blobs_problem(metric=lambda m, b: m(b[0]).argmax(-1) != b[1], higher_is_better=False)
    assert check(problem).chance.majority == ()


def test_a_held_out_set_sorted_by_class_has_every_class_at_a_rung():
    points, labels = blobs_problem().valid
    order = labels.argsort()
    problem = blobs_problem(valid=(points[order], labels[order]))
    share = dict(inspect(problem, 40).chance.majority)[40]
    assert share < 0.6


def test_a_loss_that_looks_inside_the_model_falls_back_to_the_initial_loss():
    problem = line_problem(
        loss=lambda m, b: (nn.functional.linear(b[0], m.weight, m.bias) - b[1]).square().mean()
    )
    chance = check(problem).chance
    assert chance.source == "initial loss"
    assert len(chance.batch_losses) > 1


def test_finding_chance_leaves_no_trace_in_the_model():
    model = nn.Linear(1, 1)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    check(line_problem(model=model))
    assert "forward" not in vars(model)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_held_out_values_that_are_not_finite_are_refused():
    x, y = line_problem().valid
    y = y.clone()
    y[-1] = math.nan
    with pytest.raises(es.UsageError, match="valid holds a value that is not finite"):
        check(line_problem(valid=(x, y)))


def test_where_no_constant_is_best_chance_is_the_initial_loss():
    """The model's output is the loss itself, so smaller constants are ever better."""
    x, _ = line_problem().valid
    problem = line_problem(
        model=lambda: nn.Sequential(nn.Linear(1, 1), nn.Softplus()),
        loss=lambda m, b: m(b[0]).mean(),
        train=(x, x),
        valid=(x, x),
    )
    assert check(problem).chance.source == "initial loss"
