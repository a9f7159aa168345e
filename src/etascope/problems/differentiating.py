"""Losses and metrics that take gradients themselves, in evaluations too.

A gradient penalty, a force or the residual of a differential equation is a derivative by the input.
Evaluations run without gradients, so what needs some there gets them back, for itself alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch
from torch import nn

from etascope.errors import RAISED, EtascopeError, UsageError
from etascope.problems.contents import Batch
from etascope.problems.mistakes import describe, where
from etascope.problems.problem import Problem, evaluating
from etascope.randomness import seed_everything


class Differentiating:
    """A loss or metric that runs with gradients where there are none.

    Args:
        function: of the user's, `(model, batch) -> value`.
    """

    def __init__(self, function: Callable[[nn.Module, Batch], Any]) -> None:
        update_wrapper(self, function)
        self.function = function

    def __call__(self, model: nn.Module, batch: Batch) -> Any:
        """The value; without a graph where gradients were off."""
        if torch.is_grad_enabled():
            return self.function(model, batch)
        with torch.enable_grad():
            value = self.function(model, batch)
        return value.detach() if isinstance(value, torch.Tensor) else value


def with_gradients(problem: Problem, model: nn.Module, batch: Batch, held_out: Batch) -> Problem:
    """The problem, of which loss and metric get gradients in evaluations where they need them.

    Args:
        problem: whose loss ran on `batch` in training mode.
        model: in training mode; left as it is.
        batch, held_out: the first ones of train and valid.

    Raises:
        UsageError: if the loss runs in training and in no evaluation, saying what differs.
    """
    for part in ("loss", "metric"):
        function = getattr(problem, part)
        if function is None:
            continue
        error = _error(problem, function, model, held_out)
        if error is None:
            continue
        differentiating = Differentiating(function)
        if not problem.owns_step and _error(problem, differentiating, model, held_out) is None:
            problem = copy.copy(problem)
            object.__setattr__(problem, part, differentiating)
        elif part == "loss":
            raise UsageError(_told(problem, model, batch, held_out, error)) from error
    return problem


def _error(
    problem: Problem, function: Callable[[nn.Module, Batch], Any], model: nn.Module, batch: Batch
) -> BaseException | None:
    """What a loss or metric raises in an evaluation; None if nothing."""
    seed_everything(problem.torch_device, 0, "evaluation")
    try:
        with evaluating(model):
            float(torch.as_tensor(function(model, batch)).detach().double().mean())
    except EtascopeError:
        raise
    except RAISED as error:
        return error
    return None


def _told(
    problem: Problem, model: nn.Module, batch: Batch, held_out: Batch, error: BaseException
) -> str:
    """Whether the evaluation is what an exception comes from, or the held-out data."""
    text = " ".join(str(error).split())[:300].rstrip(".")
    raised = f"raised {type(error).__name__}: {text}"
    if problem.owns_step:
        wants = "does not require grad" in text
        hint = "; put torch.enable_grad() around what it differentiates" if wants else ""
        return (
            f"evaluate {raised}{where(error)}, in evaluation mode and without gradients; the batch "
            f"is {describe(held_out)}{hint}"
        )
    if _error(problem, problem.loss, model, batch) is None:
        return (
            f"the loss, on the valid data, {raised}{where(error)}, though it ran on the train "
            f"data; their first batches are {describe(held_out)}, and {describe(batch)}"
        )
    return (
        f"the loss {raised}{where(error)} in evaluation mode (model.eval(), without gradients), "
        "though it ran in training mode; held-out data is judged there, so make model and loss "
        "work in both: model.training says which of them it is"
    )
