"""A tabular regression: the progress of diabetes from ten measurements."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from etascope.errors import UsageError
from etascope.problems.contents import Batch
from etascope.problems.problem import Problem

TRAIN = 342  # of 442 patients, in a fixed order; 100 are held out


def squared_error(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The mean squared error, in units of the variance of the training targets."""
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets)


def diabetes(*, device: str = "auto") -> Problem:
    """10→64→64→1 with ReLU on scikit-learn's diabetes data (442 patients), in batches of 32.

    Inputs and targets are standardized by the training part. It is small enough to overfit: long
    trainings at high rates end worse than short ones, which is no failure of the rate alone.

    Args:
        device: where to train.

    Raises:
        UsageError: if scikit-learn is not installed.

    Source: Efron, Hastie, Johnstone and Tibshirani, "Least angle regression", 2004.
    """
    try:
        from sklearn.datasets import load_diabetes
    except ImportError:
        raise UsageError(
            "diabetes needs scikit-learn; install it with: pip install 'etascope[tabular]'"
        ) from None
    table, progress = load_diabetes(return_X_y=True, scaled=False)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    inputs = torch.as_tensor(table).float()[order]
    targets = torch.as_tensor(progress).float()[order, None]
    inputs, targets = ((t - t[:TRAIN].mean(0)) / t[:TRAIN].std(0) for t in (inputs, targets))

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    return Problem(
        model=network,
        loss=squared_error,
        train=(inputs[:TRAIN], targets[:TRAIN]),
        valid=(inputs[TRAIN:], targets[TRAIN:]),
        device=device,
        batch_size=32,
        name="diabetes",
    )
