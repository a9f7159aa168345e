"""Whether a loss has a lower bound, shown with the model itself.

A loss such as `nll_loss` on raw outputs, or one whose sign is flipped, is lowered without end by
ever larger outputs. The rate that diverges fastest would win then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import nn

TENFOLDS = 10  # steps along the gradient, each ten times as long as the one before
FALLS = 4  # of these in a row, each to less than `FASTER` times the loss before, have no end
FASTER = 3.0  # a loss that is linear in the outputs falls tenfold, one that saturates not at all
BEYOND = 1e3  # times the size of the loss of the untrained model


def endless_fall(model: nn.Module, loss: Callable[[], float], start: float) -> list[float] | None:
    """Losses that fall on and on along minus the gradient; None where the fall has an end.

    The model is moved from `w` to `w - 10^k |w| g / |g|` for k = 0, 1, ... until its loss rises,
    stays or is no number; a bounded loss does so soon. Its weights are changed, on purpose.

    Args:
        model: whose parameters have a gradient `g`.
        loss: computes the loss of the same batch with the same draws.
        start: what it gives at the weights as they are.

    Returns:
        The first losses of the fall, if the last ones fell at least threefold each time and went
        below minus a thousand times the size of `start`.

    >>> line = nn.Linear(1, 1)
    >>> x = torch.ones(1, 1)
    >>> value = line(x).sum()
    >>> value.backward()
    >>> endless_fall(line, lambda: float(line(x).sum()), float(value)) is None
    False
    """
    found, falls = [start], 0
    for _ in _along_gradient(model):
        value = loss()
        if not value < found[-1]:
            return None
        falls = falls + 1 if value < 0 and value < FASTER * found[-1] else 0
        found.append(value)
        if value < -BEYOND * abs(start) and (falls >= FALLS or value == -math.inf):
            return found[1:] if falls >= 2 else None
    return None


def _along_gradient(model: nn.Module) -> Iterator[None]:
    """Move the parameters along minus their gradient, ten times as far each time."""
    moved = [p for p in model.parameters() if p.grad is not None and p.grad.layout is torch.strided]
    weights = [p.detach().clone() for p in moved]
    gradients = [p.grad.detach().clone() for p in moved if p.grad is not None]
    length = _norm(weights) / max(_norm(gradients), 1e-30)
    for k in range(TENFOLDS):
        with torch.no_grad():
            for p, weight, gradient in zip(moved, weights, gradients, strict=True):
                p.copy_(weight - 10.0**k * length * gradient)
        yield


def _norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(t.double().abs().square().sum()) for t in tensors)) or 1.0
