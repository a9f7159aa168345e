"""The built-in experiment: a small convolutional network on MNIST."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from etascope.errors import UsageError
from etascope.problems.mnist import mnist_problem
from etascope.problems.problem import Problem


class MnistCNN(nn.Module):
    """Two convolutional layers and two dense ones; returns logits.

        input [batch, 28, 28, 1]
        layer1    conv 5x5 1→32 SAME, ReLU, max pool 2x2     [batch, 32, 14, 14]
        layer2    conv 5x5 32→64 SAME, ReLU, max pool 2x2    [batch, 64, 7, 7]
        fc_layer  3136→1024, ReLU
        dropout   keeps a unit with probability keep_prob in training, every unit in evaluation
        layer3    1024→classes

    Weights are truncated normal (σ = 0.1, cut at 2σ), biases 0.1.

    Args:
        keep_prob: the share of units that dropout keeps, in (0, 1].
        classes: how many classes there are.

    Example:
        >>> MnistCNN()(torch.zeros(2, 28, 28, 1)).shape
        torch.Size([2, 10])
    """

    def __init__(self, keep_prob: float = 0.5, classes: int = 10) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
        self.layer2 = nn.Sequential(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
        self.fc_layer = nn.Sequential(nn.Flatten(), nn.Linear(7 * 7 * 64, 1024), nn.ReLU())
        self.dropout = nn.Dropout(1 - keep_prob)
        self.layer3 = nn.Linear(1024, classes)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.1, a=-0.2, b=0.2)
            else:
                nn.init.constant_(parameter, 0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [batch, classes] of images [batch, 28, 28, 1]."""
        hidden = self.layer2(self.layer1(images.permute(0, 3, 1, 2)))
        logits: torch.Tensor = self.layer3(self.dropout(self.fc_layer(hidden)))
        return logits

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Class probabilities [batch, classes]: the softmax of the logits."""
        probabilities: torch.Tensor = self(images).softmax(dim=-1)
        return probabilities


def mnist_cnn(
    *, keep_prob: float = 0.5, data: str | Path | None = None, device: str = "auto"
) -> Problem:
    """The network of `MnistCNN` on MNIST: 55 000 images to train, 5 000 to decide, 10 000 to test.

    Args:
        keep_prob: the share of units that dropout keeps in training, in (0, 1].
        data: a directory with another IDX quadruple of MNIST's naming and image size, such as
            Fashion-MNIST; by default the bundled MNIST.
        device: where to train.

    Raises:
        UsageError: for a keep_prob out of range; `DataError` for files that are not as they
            should be.
    """
    if not 0 < keep_prob <= 1:
        raise UsageError(f"keep_prob is {keep_prob!r}; it must be above 0 and at most 1")
    return mnist_problem(
        lambda classes: MnistCNN(keep_prob, classes), "mnist-cnn", data=data, device=device
    )
