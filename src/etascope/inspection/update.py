"""The numbers in one update: what the symbols of the rule were, parameter by parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from etascope.optim.adam import Adam
from etascope.plan import Plan
from etascope.problems.problem import Problem
from etascope.randomness import seed_everything, undisturbed

STEP = 10
SHARES = (0.05, 0.5, 0.95)
MOST = 1 << 20  # numbers of a tensor that quantiles are taken of, evenly spaced


class Spread(NamedTuple):
    """Quantiles of absolute values: 5 %, 50 % and 95 %. None where a value is not finite."""

    low: float | None
    middle: float | None
    high: float | None


class ParameterUpdate(NamedTuple):
    """One parameter in one step."""

    name: str
    shape: tuple[int, ...]
    weight: Spread
    """Before the step."""
    gradient: Spread
    state: Mapping[str, Spread]
    """What the optimizer keeps of the parameter's shape, after the step, by its own names."""
    change: Spread
    """Of the weight, by the step."""


class Update(NamedTuple):
    """One step of one rate."""

    lr: float
    t: int
    lr_t: float | None
    """The factor before m / (√v + ε), where the optimizer is `etascope.Adam`."""
    parameters: tuple[ParameterUpdate, ...]


def measure_update(problem: Problem, plan: Plan, lr: float, t: int = STEP) -> Update:
    """Take t steps of seed 0 on copies, as a trial would in float32 without schedule and clipping.

    Args:
        problem: what is trained.
        plan: its optimizer and weight decay are used.
        lr: the rate.
        t: the step that is measured, from 1.

    Returns:
        The quantiles of that step, parameter by parameter.

    Example:
        >>> import etascope as es
        >>> update = measure_update(es.get_problem("mnist-cnn"), es.Plan(steps=2), 0.001, t=1)
        >>> round(update.lr_t / update.lr, 3), round(update.parameters[0].change.high, 4)
        (0.316, 0.001)
    """
    device = problem.torch_device
    with undisturbed(device):
        model = problem.make_model(0)
        optimizer = plan.make_optimizer(model, lr)
        batches = problem.batches(0, 0)
        batch = next(batches)
        for step in range(t):
            batch = next(batches, batch) if step else batch
            optimizer.zero_grad()
            seed_everything(device, 0, "step", step)
            problem.loss(model, batch).backward()  # type: ignore[no-untyped-call]
            before = [p.detach().clone() for p in model.parameters()] if step == t - 1 else []
            optimizer.step()
        named = zip(model.named_parameters(), before, strict=True)
        found = [
            _measured(name, p, weight, optimizer.state.get(p, {}))
            for (name, p), weight in named
            if p.grad is not None
        ]
    factor = None
    if isinstance(optimizer, Adam):
        beta1, beta2 = optimizer.param_groups[0]["betas"]
        factor = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
    return Update(lr, t, factor, tuple(found))


def _measured(
    name: str, parameter: torch.Tensor, weight: torch.Tensor, state: Mapping[str, Any]
) -> ParameterUpdate:
    assert parameter.grad is not None
    kept = {
        key: _spread(value)
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
    }
    change = parameter.detach() - weight
    shape = tuple(parameter.shape)
    return ParameterUpdate(
        name, shape, _spread(weight), _spread(parameter.grad), kept, _spread(change)
    )


def _spread(tensor: torch.Tensor) -> Spread:
    values = tensor.detach().abs().flatten()
    values = values[:: max(1, len(values) // MOST)][:MOST].double().cpu()
    if len(values) == 0 or not bool(values.isfinite().all()):
        return Spread(None, None, None)
    return Spread(*torch.quantile(values, torch.tensor(SHARES, dtype=torch.float64)).tolist())
