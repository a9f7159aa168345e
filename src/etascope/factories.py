"""The door for optimizer and schedule: each is made and takes a real step, before any training."""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from etascope.errors import UsageError
from etascope.plan import Plan
from etascope.problems.checks import named
from etascope.problems.problem import Problem
from etascope.randomness import seed_everything, undisturbed


def check_factories(problem: Problem, plan: Plan, lr: float) -> None:
    """Make optimizer and schedule, take a first step with each, so that a mistake shows early.

    Raises:
        UsageError: if one raises, is of the wrong type, or asks for what no trial gives.
    """
    with undisturbed(problem.torch_device):
        model = problem.make_model(0)
        with named("optimizer", _takes(plan.optimizer, "model, lr", "model.parameters(), lr=lr")):
            optimizer = plan.make_optimizer(model, lr)
            _check_optimizer(optimizer, model)
        if not problem.owns_step:
            _take_a_step(problem, plan, model, optimizer)
        if plan.schedule == "constant":
            return
        with named("schedule", _takes(plan.schedule, "optimizer, steps", "optimizer, steps")):
            schedule = plan.make_schedule(optimizer)
            _check_schedule(schedule)
            if schedule is not None and plan.steps > 1:
                optimizer.step()  # torch warns of a schedule whose optimizer made no step since
                schedule.step()


def lr_course(problem: Problem, plan: Plan) -> list[float]:
    """The learning rate of each step as a share of the peak, by the plan's schedule: [step]."""
    if plan.schedule == "constant":
        return [1.0] * plan.steps
    with undisturbed(problem.torch_device):
        with named("optimizer"):
            optimizer = _resting(plan.make_optimizer(problem.make_model(0), 1e-3))
        with named("schedule"):
            schedule = plan.make_schedule(optimizer)
        rates = []
        for step in range(plan.steps):
            rates.append(max(float(group["lr"]) for group in optimizer.param_groups))
            if schedule is not None and step + 1 < plan.steps:
                optimizer.step()  # torch wants it before
                schedule.step()
    peak = max(rates)
    return [rate / peak for rate in rates] if peak > 0 else rates


def describe_factories(problem: Problem, plan: Plan) -> dict[str, Any]:
    """What the user's factories make, as JSON values: a study knows them by it.

    A factory has no name that tells one from another, so it is known by what it makes at the rate
    0.001: the class, its groups with their options and sizes, and the first scheduled rates.
    """
    made: dict[str, Any] = {}
    with undisturbed(problem.torch_device):
        model = problem.make_model(0)
        optimizer = _resting(plan.make_optimizer(model, 1e-3))
        if not isinstance(plan.optimizer, str):
            made["optimizer"] = [type(optimizer).__name__, *map(_options, optimizer.param_groups)]
        if not isinstance(plan.schedule, str):
            schedule = plan.make_schedule(optimizer)
            rates = made["schedule"] = [[float(g["lr"]) for g in optimizer.param_groups]]
            for _ in range(min(3, plan.steps - 1)):
                optimizer.step()
                if schedule is not None:
                    schedule.step()
                rates.append([float(g["lr"]) for g in optimizer.param_groups])
    return made


def _take_a_step(problem: Problem, plan: Plan, model: nn.Module, optimizer: Optimizer) -> None:
    """The first step of a trial of seed 0: real gradients, and what they meet on their way."""
    seed_everything(problem.torch_device, 0, "batch")
    batch = next(problem.batches(0, 0))
    seed_everything(problem.torch_device, 0, "step")
    kind = type(optimizer).__name__
    with named(f"optimizer {kind}, in zero_grad(),"):
        optimizer.zero_grad()
    with named("loss"):
        problem.loss(model, batch).backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    sparse = any(gradient.layout is not torch.strided for gradient in gradients)
    remedy = "; its gradients are sparse: make the embeddings with sparse=False" if sparse else ""
    if plan.clip is not None:
        with named("clipping of gradients", remedy and f"{remedy}, or leave clip out"):
            nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
    with named(f"optimizer {kind}, in its first step,", remedy):
        optimizer.step()


def _resting(optimizer: Optimizer) -> Optimizer:
    """The optimizer, whose steps do nothing from here on: there are no gradients to step on.

    A schedule made of it wants steps before its own, and many an optimizer takes none without
    gradients.
    """
    optimizer.step = MethodType(lambda self, closure=None: None, optimizer)  # type: ignore[method-assign]
    return optimizer


def _options(group: dict[str, Any]) -> dict[str, Any]:
    """The options of a parameter group that are plain values, and how much it trains."""
    plain = {k: v for k, v in group.items() if isinstance(v, (bool, int, float, str, tuple))}
    return {**plain, "parameters": sum(p.numel() for p in group["params"])}


def _takes(choice: object, given: str, passed: str) -> str:
    """How a factory is written, where a class (or a partial one) was passed in its place."""
    kind = getattr(choice, "func", choice)
    if not isinstance(kind, type):
        return ""
    return f"; pass a factory such as lambda {given}: {kind.__name__}({passed})"


def _check_optimizer(made: object, model: nn.Module) -> None:
    if not isinstance(made, Optimizer):
        raise UsageError(
            f"the optimizer factory returned a {type(made).__name__}; "
            "it must return a torch.optim.Optimizer"
        )
    name = type(made).__name__
    closure = inspect.signature(type(made).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UsageError(
            f"the optimizer {name} needs a closure, which no trial gives it; "
            "take one that steps on gradients alone"
        )
    own = {id(p) for p in model.parameters()}
    if any(id(p) not in own for group in made.param_groups for p in group["params"]):
        raise UsageError(
            f"the optimizer {name} holds parameters that are not those of the model it was given; "
            "each trial trains a model of its own: build it from model.parameters()"
        )


def _check_schedule(made: object) -> None:
    if isinstance(made, ReduceLROnPlateau):
        raise UsageError(
            "the schedule ReduceLROnPlateau follows a measured loss, which no trial hands it; "
            "take one that follows the steps"
        )
    if not isinstance(made, LRScheduler):
        raise UsageError(
            f"the schedule factory returned a {type(made).__name__}; "
            "it must return a torch.optim.lr_scheduler.LRScheduler"
        )
