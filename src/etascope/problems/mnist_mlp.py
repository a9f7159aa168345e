"""A multilayer perceptron on MNIST."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from etascope.problems.mnist import mnist_problem
from etascope.problems.problem import Problem


def mnist_mlp(*, data: str | Path | None = None, device: str = "auto") -> Problem:
    """784→128→128→classes with ReLU and torch's own initialization; batches of 50.

    Args:
        data: a directory with another IDX quadruple of MNIST's naming and image size; by default
            the bundled MNIST.
        device: where to train.

    Raises:
        UsageError: `DataError` for files that are not as they should be.

    Example:
        >>> sum(p.numel() for p in mnist_mlp().make_model(0).parameters())
        118282
    """

    def network(classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )

    return mnist_problem(network, "mnist-mlp", data=data, device=device)
