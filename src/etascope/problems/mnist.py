"""The problems on MNIST share their data, their split, their loss and their metric."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from etascope.data.mnist import load_mnist
from etascope.errors import UsageError
from etascope.problems.contents import Batch
from etascope.problems.problem import Problem

VALID_EXAMPLES = 5000  # the first images of the training file


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The mean cross-entropy of the softmax of the model's logits, in nats."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def accuracy(model: nn.Module, batch: Batch) -> torch.Tensor:
    """1 where the largest logit is the label's, else 0; one value an example."""
    images, labels = batch
    correct: torch.Tensor = model(images).argmax(dim=-1) == labels
    return correct


def mnist_problem(
    model: Callable[[int], nn.Module],
    name: str,
    *,
    data: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 50,
) -> Problem:
    """A network on MNIST: 55 000 images to train, 5 000 to decide, 10 000 to test.

    Args:
        model: from the number of classes to a new network, which takes images
            [batch, 28, 28, 1] between 0 and 1 and returns logits [batch, classes].
        name: how the problem is called.
        data: a directory with another IDX quadruple of MNIST's naming and image size; by default
            the bundled MNIST.
        device: where to train.
        batch_size: images a batch.

    Raises:
        UsageError: `DataError` for files that are not as they should be.
    """
    files = load_mnist(data)
    shape = files.train_images.shape[1:]
    if shape != (28, 28):
        raise UsageError(f"the images in {data} are {shape}; {name} takes 28 by 28")
    if len(files.train_images) <= VALID_EXAMPLES:
        raise UsageError(
            f"{data} holds {len(files.train_images)} training images; "
            f"{name} keeps {VALID_EXAMPLES} of them for validation and needs more"
        )
    classes = max(10, 1 + int(max(files.train_labels.max(), files.test_labels.max())))

    def tensors(images: object, labels: object) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.as_tensor(images).float().div_(255).unsqueeze(-1)
        return pixels, torch.as_tensor(labels).long()

    images, labels = tensors(files.train_images, files.train_labels)
    return Problem(
        model=lambda: model(classes),
        loss=cross_entropy,
        train=(images[VALID_EXAMPLES:], labels[VALID_EXAMPLES:]),
        valid=(images[:VALID_EXAMPLES], labels[:VALID_EXAMPLES]),
        test=tensors(files.test_images, files.test_labels),
        metric=accuracy,
        device=device,
        batch_size=batch_size,
        name=name,
    )
