"""A small convolutional network with batch normalization on MNIST."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from etascope.problems.mnist import mnist_problem
from etascope.problems.problem import Problem


class MnistBatchNorm(nn.Module):
    """Three convolutional layers, each normalized over its batch; returns logits.

        input [batch, 28, 28, 1]
        block1..3  conv 3x3 stride 2 (1→16→32→32), batch norm, ReLU   [batch, 32, 4, 4]
        head       512→classes

    The scale of a layer before batch norm does not change its output, so a large step turns the
    weights but cannot blow the activations up: too high a rate shows late and seldom as NaN.

    Args:
        classes: how many classes there are.

    Example:
        >>> MnistBatchNorm()(torch.zeros(2, 28, 28, 1)).shape
        torch.Size([2, 10])
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.block1, self.block2, self.block3 = (
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            )
            for inputs, outputs in ((1, 16), (16, 32), (32, 32))
        )
        self.head = nn.Linear(32 * 4 * 4, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [batch, classes] of images [batch, 28, 28, 1]."""
        hidden = self.block3(self.block2(self.block1(images.permute(0, 3, 1, 2))))
        logits: torch.Tensor = self.head(hidden.flatten(1))
        return logits


def mnist_batchnorm(*, data: str | Path | None = None, device: str = "auto") -> Problem:
    """The network of `MnistBatchNorm` on MNIST, in batches of 50.

    Args:
        data: a directory with another IDX quadruple of MNIST's naming and image size; by default
            the bundled MNIST.
        device: where to train.

    Raises:
        UsageError: `DataError` for files that are not as they should be.
    """
    return mnist_problem(MnistBatchNorm, "mnist-batchnorm", data=data, device=device)
