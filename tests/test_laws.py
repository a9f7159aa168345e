"""What mathematics says of learning rates must come out of real sweeps."""

import pytest
import torch
from small import line_problem
from torch import nn

import etascope as es

CURVATURES = torch.tensor([0.5, 2.0, 8.0])
STEPS = 3000  # at 2 % past the edge the weights grow by 4 % a step, until float32 overflows


class Quadratic(nn.Module):
    """½ Σ h w² from w = 1: the loss that curvature theory is exact for."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return (0.5 * CURVATURES * self.weights**2).sum().expand(len(x))


def quadratic(scale=1.0):
    x = torch.zeros(20, 1)
    return line_problem(
        model=Quadratic, loss=lambda m, b: scale * m(b[0]).mean(), train=(x, x), valid=(x, x)
    )


def names(problem, lrs, tmp_path, optimizer):
    study = es.sweep(problem, lrs, steps=STEPS, optimizer=optimizer, out=tmp_path / "study")
    return [study.verdicts[lr].name for lr in sorted(lrs)]


@pytest.mark.parametrize(
    ("optimizer", "threshold"),
    [("sgd", 2.0), ("sgd-momentum", 3.8), ("sgd-nesterov", 3.8 / 2.8)],
)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_sgd_diverges_past_its_edge_and_not_before(tmp_path, optimizer, threshold, scale):
    """The edge is the threshold over λmax; doubling the loss halves it."""
    edge = threshold / (scale * 8.0)
    below, above = 0.98 * edge, 1.02 * edge
    assert names(quadratic(scale), [below, above], tmp_path, optimizer) == ["best", "diverged"]


def test_the_scale_of_the_loss_leaves_adam_alone(tmp_path):
    """Adam divides by the size of the gradient; doubling is exact in floating point."""
    curves = []
    for scale in (1.0, 2.0):
        study = es.sweep(
            quadratic(scale), [0.003, 0.03], steps=200, optimizer="adam", out=tmp_path / f"{scale}"
        )
        curves.append([h.loss / scale for h in study.trials])
    for one, two in zip(*curves, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-12)
