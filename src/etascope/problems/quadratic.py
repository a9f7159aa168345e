"""An ill-conditioned noisy quadratic, of which all is known."""

from __future__ import annotations

import torch
from torch import nn

from etascope.problems.contents import Batch
from etascope.problems.problem import Problem

CURVATURES = torch.logspace(1, -2, 20)  # the largest is 10, so the edge of sgd is 2 / 10
NOISE = 0.1  # the standard deviation of an example's optimum around the common one
EXAMPLES = 10_000


class Quadratic(nn.Module):
    """`½ Σ h (w - z)²` for each example z, from w = 0; the curvatures h reach from 10 to 0.01.

    Example:
        >>> Quadratic()(torch.zeros(3, 20)).sum().item()
        0.0
    """

    h: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(len(CURVATURES)))
        self.register_buffer("h", CURVATURES.clone())

    def forward(self, optima: torch.Tensor) -> torch.Tensor:
        """The loss [batch] of each example [batch, 20]."""
        losses: torch.Tensor = 0.5 * (self.h * (self.weights - optima) ** 2).sum(1)
        return losses


def mean_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The mean of the losses that the model returns."""
    losses: torch.Tensor = model(batch[0])
    return losses.mean()


def quadratic(*, device: str = "auto") -> Problem:
    """The noisy quadratic of `Quadratic`: curvatures from 10 to 0.01, in batches of 8.

    Every example z is drawn around one optimum with standard deviation 0.1. What is known of it:
    gradient descent turns unstable at a rate of 2/λmax = 0.2, the heavy ball with momentum β at
    (2 + 2β)/λmax, and no rate brings the loss below half the sum of `h * 0.1²`.

    Args:
        device: where to train.

    Source: Zhang et al., "Which algorithmic choices matter at which batch sizes? Insights from a
    noisy quadratic model", 2019.
    """
    draw = torch.Generator().manual_seed(0)
    optimum = torch.randn(len(CURVATURES), generator=draw)
    examples = optimum + NOISE * torch.randn(EXAMPLES, len(CURVATURES), generator=draw)
    return Problem(
        model=Quadratic,
        loss=mean_loss,
        train=(examples[2000:],),
        valid=(examples[:2000],),
        device=device,
        batch_size=8,
        name="quadratic",
    )
