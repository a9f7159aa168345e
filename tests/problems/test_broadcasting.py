"""Outputs and targets that broadcast against each other are refused, meant pairs are not."""

import pytest
import torch
from small import line_problem
from torch import nn
from torch.nn import functional as F

import etascope as es
from etascope.problems.checks import check_parts

x = torch.rand(96, 4, generator=torch.Generator().manual_seed(0))
flat, column = x.sum(1), x.sum(1, keepdim=True)


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, inputs):
        return self.head(inputs).squeeze(-1)


class OwnLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, inputs, targets):
        return (self.head(inputs) - targets).square().mean()


def problem(loss, targets=flat, model=lambda: nn.Linear(4, 1), **changes):
    settings = {"train": (x[:64], targets[:64]), "valid": (x[64:], targets[64:]), **changes}
    return line_problem(model=model, loss=loss, **settings)


def squares(m, b):
    return (m(b[0]) - b[1]).square().mean()


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("loss", "targets", "model"),
    [
        (squares, flat, lambda: nn.Linear(4, 1)),
        (squares, column, Squeezed),
        (lambda m, b: F.mse_loss(m(b[0]), b[1]), flat, lambda: nn.Linear(4, 1)),
        (lambda m, b: F.l1_loss(m(b[0]).sigmoid(), b[1]), flat, lambda: nn.Linear(4, 1)),
        (lambda m, b: F.huber_loss(m(b[0]), b[1].unsqueeze(1)), flat, Squeezed),
        (lambda m, b: (b[1].view(-1, 1) - m(b[0])).abs().mean(), flat, Squeezed),
        (lambda m, b: (m(b[0]) - b[1].double().float() * 2).abs().mean(), flat, None),
        (lambda m, b: torch.where(m(b[0]) < b[1], m(b[0]), b[1]).square().mean(), flat, None),
        (lambda m, b: (m(b[0]).squeeze() - b[1]).square().mean(), column, None),
        (lambda m, b: m(*b), flat, OwnLoss),
        (lambda m, b: ((m(b[0]) - column.mean()).square() * b[1]).mean(), flat, None),
    ],
)
def test_outputs_set_against_targets_crosswise_are_refused(loss, targets, model):
    shapes = r"\[8, 1\].* of shape \[8\]|\[8\].* of shape \[8, 1\]"
    with pytest.raises(
        es.UsageError, match=rf"the loss sets what .*({shapes}), which makes \[8, 8"
    ):
        check_parts(problem(loss, targets, model or (lambda: nn.Linear(4, 1))))


def test_so_are_sequences_as_long_as_the_batch():
    series = torch.rand(96, 8, 4)
    sequences = {
        "train": (series[:64], series[:64, :, 0]),
        "valid": (series[64:], series[64:, :, 0]),
    }
    with pytest.raises(es.UsageError, match=r"\[8, 8, 1\], against data of shape \[8, 8\]"):
        check_parts(line_problem(model=lambda: nn.Linear(4, 1), loss=squares, **sequences))


def test_a_metric_that_crosses_them_is_refused():
    def right(m, b):
        return ((m(b[0]) > 0.5) == (b[1] > 0.5)).float().mean()

    crossing = problem(lambda m, b: squares(m, (b[0], b[1][:, None])), metric=right)
    with pytest.raises(es.UsageError, match="the metric sets what the model gave"):
        check_parts(crossing)


def test_a_held_out_set_of_another_shape_is_looked_at_too():
    with pytest.raises(es.UsageError, match="the loss sets what the model gave"):
        check_parts(problem(squares, column, valid=(x[64:], flat[64:])))


def pairs(m, b):
    """Concordance of outputs over pairs that the targets order."""
    out = m(b[0])
    return (F.softplus(out.T - out) * (b[1][:, None] > b[1])).mean()


def every_pair(m, b):
    return (m(b[0]).squeeze(1)[:, None] - b[1][None, :]).abs().mean() / 2


def energy(m, b):
    out = m(b[0])
    return every_pair(m, b) * 2 - (out - out.squeeze(1)).abs().mean() / 2


def cox(m, b):
    risk = m(b[0]).squeeze(1)
    at_risk = (b[1][None, :] >= b[1][:, None]).float()
    return -(risk - (risk.exp() * at_risk).sum(1).log()).mean()


def supervised_contrast(m, b):
    out = F.normalize(m(b[0]))
    same = (b[1].round() == b[1].round()[:, None]).float()
    return -(F.log_softmax(out @ out.T, 1) * same).sum(1).mean()


class Kernels(nn.Module):
    """As many centres as a batch has examples, by chance."""

    def __init__(self):
        super().__init__()
        self.centres, self.weights = nn.Parameter(torch.rand(8, 1)), nn.Parameter(torch.rand(8))

    def forward(self, inputs):
        return self.weights @ (inputs[:, 0] - self.centres).square().neg().exp()


@pytest.mark.parametrize(
    ("loss", "targets", "model"),
    [
        (squares, column, lambda: nn.Linear(4, 1)),
        (squares, flat, Squeezed),
        (squares, flat, Kernels),
        (pairs, flat, lambda: nn.Linear(4, 1)),
        (every_pair, flat, lambda: nn.Linear(4, 1)),
        (energy, flat, lambda: nn.Linear(4, 1)),
        (cox, flat, lambda: nn.Linear(4, 1)),
        (supervised_contrast, flat, lambda: nn.Linear(4, 3)),
        (lambda m, b: (m(b[0]) - b[1]).square().mean(), column, lambda: nn.Linear(4, 5)),
        (lambda m, b: (m(b[0]).T - b[1]).square().mean(), flat, lambda: nn.Linear(4, 1)),
        (lambda m, b: F.mse_loss(m(b[0])[:, 0], b[1]), flat, lambda: nn.Linear(4, 1)),
    ],
)
def test_pairs_that_are_meant_pass(loss, targets, model):
    check_parts(problem(loss, targets, model))


def test_a_batch_of_one_cannot_cross():
    check_parts(problem(squares, batch_size=1))
