"""Whether a loss has a lower bound, shown with the model itself.

A loss such as `nll_loss` on raw outputs, or one whose sign is flipped, is lowered without end by
ever larger outputs. The rate that diverges fastest would win then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from etascope.errors import RAISED, UsageError
from etascope.problems.contents import Batch
from etascope.problems.problem import Problem
from etascope.randomness import seed_everything

TENFOLDS = 10  # steps down the gradient, each ten times as long as the one before
FALLS = 4  # of these in a row, each to less than `FASTER` times the loss before, have no end
FASTER = 3.0  # a loss that is linear in the outputs falls tenfold, one that saturates not at all
BEYOND = 1e3  # times the size of the loss of the untrained model


def check_bound(problem: Problem, model: nn.Module, batch: Batch, start: float) -> None:
    """Make sure that larger outputs do not lower the loss without end; moves the model.

    Raises:
        UsageError: with the losses of the way down. A baseline that the user gave lets it pass.
    """
    if problem.owns_step or problem.chance is not None:
        return

    def loss() -> float:
        seed_everything(problem.torch_device, 0, "check")
        value = problem.loss(model, batch)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    try:
        fall = endless_fall(model, loss, start)
    except RAISED:  # a loss or a model may refuse such weights
        return
    if fall is not None:
        shown = ", ".join(f"{value:.3g}" for value in fall[:5])
        raise UsageError(
            "the loss has no lower bound: steps down its gradient, each ten times as long, give "
            f"{shown} and so on, so that the largest outputs win whatever they say; look for a "
            "flipped sign or a missing log_softmax (nll_loss wants log-probabilities), or give "
            "chance= the held-out loss of knowing nothing if it is meant so"
        )


def endless_fall(model: nn.Module, loss: Callable[[], float], start: float) -> list[float] | None:
    """Losses that fall on and on down the gradient; None where the fall has an end.

    The weights `w` go to `w - 10^k |w| g / |g|` for k = 0, 1, ... until the loss rises, stays or is
    no number; a bounded loss does so soon. Where that way down has an end it is tried once more
    with a gradient `g` taken anew after each step. The weights are changed, on purpose.

    Args:
        model: whose parameters have a gradient `g`.
        loss: computes the loss of the same batch with the same draws, and its gradient.
        start: what it gives at the weights as they are.

    Returns:
        The losses of the fall, if the last ones fell at least threefold each time and went below
        minus a thousand times the size of `start`.

    >>> line = nn.Linear(1, 1)
    >>> def loss():
    ...     value = line(torch.ones(1, 1)).sum()
    ...     value.backward()
    ...     return float(value.detach())
    >>> endless_fall(line, loss, loss()) is None
    False
    """
    trained = [p for p in model.parameters() if p.grad is not None]
    weights = [p.detach().clone() for p in trained]
    gradient = _gradient(trained)
    straight = _fall(trained, loss, start, gradient, anew=False)
    if straight is not None:
        return straight
    with torch.no_grad():
        for p, weight in zip(trained, weights, strict=True):
            p.copy_(weight)
    return _fall(trained, loss, start, gradient, anew=True)


def _fall(
    trained: list[nn.Parameter],
    loss: Callable[[], float],
    start: float,
    gradient: list[torch.Tensor],
    *,
    anew: bool,
) -> list[float] | None:
    found, falls = [start], 0
    origin, length = [p.detach().clone() for p in trained], _norm(trained)
    for k in range(TENFOLDS):
        scale = 10.0**k * length / _norm(gradient)
        with torch.no_grad():
            for p, weight, slope in zip(trained, origin, gradient, strict=True):
                p.copy_((p if anew else weight) - scale * slope)
                p.grad = None
        value = loss()
        if not value < found[-1]:
            return None
        falls = falls + 1 if value < 0 and value < FASTER * found[-1] else 0
        found.append(value)
        if value == -math.inf:
            return found[1:] if falls > 1 else None
        if value < -BEYOND * abs(start) and falls >= FALLS:
            return found[1:]
        gradient = _gradient(trained) if anew else gradient
    return None


def _gradient(trained: list[nn.Parameter]) -> list[torch.Tensor]:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    return [g.detach().to_dense().clone() for g in gradients]


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    """The norm of all numbers of the tensors together; 1 where it is 0."""
    squares = [t.detach().to_dense().to(torch.complex128).abs().square().sum() for t in tensors]
    return math.sqrt(sum(map(float, squares))) or 1.0
