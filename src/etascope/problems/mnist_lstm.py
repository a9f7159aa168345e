"""A small recurrent network that reads MNIST row by row."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from etascope.problems.mnist import mnist_problem
from etascope.problems.problem import Problem


class MnistLSTM(nn.Module):
    """An LSTM of 64 units over the 28 rows of an image, and a dense layer; returns logits.

    Args:
        classes: how many classes there are.

    Example:
        >>> MnistLSTM()(torch.zeros(2, 28, 28, 1)).shape
        torch.Size([2, 10])
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, 64, batch_first=True)
        self.head = nn.Linear(64, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [batch, classes] of images [batch, 28 rows, 28 columns, 1]."""
        states, _ = self.lstm(images.squeeze(-1))
        logits: torch.Tensor = self.head(states[:, -1])
        return logits


def mnist_lstm(*, data: str | Path | None = None, device: str = "auto") -> Problem:
    """The network of `MnistLSTM` on MNIST, in batches of 50.

    Args:
        data: a directory with another IDX quadruple of MNIST's naming and image size; by default
            the bundled MNIST.
        device: where to train.

    Raises:
        UsageError: `DataError` for files that are not as they should be.
    """
    return mnist_problem(MnistLSTM, "mnist-lstm", data=data, device=device)
