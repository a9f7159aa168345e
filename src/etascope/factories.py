"""The door for optimizer and schedule: each is made and takes a real step, before any training."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from etascope.errors import RAISED, UsageError
from etascope.plan import Plan
from etascope.problems.checks import named
from etascope.problems.owned import Owned
from etascope.problems.problem import Problem
from etascope.problems.stream import BatchStream
from etascope.randomness import seed_everything, undisturbed

APART = 100.0  # the ratio of the two rates at which what is made is compared
SHOWN = 10  # steps that are trained at both rates before a factory is said to ignore its rate
# Options of a group that hold its rate, or that a schedule writes beside the rate in force.
RATES = frozenset({"lr", "initial_lr", "max_lr", "min_lr", "base_lr"})


def check_factories(problem: Problem, plan: Plan, lr: float) -> None:
    """Make optimizer and schedule, take a first step with each, so that a mistake shows early.

    Raises:
        UsageError: if one raises, is of the wrong type, or asks for what no trial gives.
    """
    with undisturbed(problem.torch_device):
        model = problem.make_model(0)
        with named("optimizer", lambda: _optimizer_hint(plan, model, lr)):
            optimizer = plan.make_optimizer(model, lr)
            _check_optimizer(optimizer, model)
        if not problem.owns_step:
            _take_a_step(problem, plan, model, optimizer)
        if plan.schedule != "constant":
            _check_first_step(plan, optimizer)
    check_effect(problem, plan, lr)


def _check_first_step(plan: Plan, optimizer: Optimizer) -> None:
    hint = _takes(plan.schedule, "optimizer, steps", "optimizer, steps")
    called = "; a schedule factory is called as (optimizer, steps)"
    with named("schedule", hint or (called if _takes_other(plan.schedule) else "")):
        schedule = plan.make_schedule(optimizer)
        _check_schedule(schedule)
        if schedule is not None and plan.steps > 1:
            optimizer.step()  # torch warns of a schedule whose optimizer made no step since
            schedule.step()


def check_effect(problem: Problem, plan: Plan, lr: float) -> None:
    """Make sure that the learning rate reaches the training.

    What is made at `lr` and at a rate two decades below is compared: the rates of the groups over
    the course of the schedule, and the other options of the optimizer. Where nothing differs, a
    few steps are trained at both rates, and only weights that have moved and are equal show that
    a factory ignores its rate. A group with a rate of its own beside one that follows is fine.

    Raises:
        UsageError: naming the factory that ignores its rate, or a schedule that is 0 throughout.
    """
    if isinstance(plan.optimizer, str) and isinstance(plan.schedule, str):
        return
    rates = lr, lr / APART
    with undisturbed(problem.torch_device):
        try:
            made = [_made(problem, plan, rate) for rate in rates]
            before = [_rates_of(groups) for _, groups in made]
            knobs = [[_knobs(group) for group in groups] for _, groups in made]
            courses = [_course(problem, plan, *both) for both in made]
            peaks: list[float] = []
            for ours, theirs in zip(*courses, strict=True):
                if knobs[0] != knobs[1] or not _same_rates(ours, theirs):
                    return
                peaks += map(abs, ours)
            weights = [_weights_after(problem, plan, rate) for rate in rates]
        except RAISED:  # a factory may refuse the lower rate; then nothing can be told
            return
    if not problem.owns_step and max(peaks, default=1.0) == 0:
        raise UsageError(
            f"the schedule gives the rate 0 at each of the {plan.steps} steps, which trains "
            "nothing; look for a whole-number division, or for steps that were taken for epochs"
        )
    if None not in weights and all(map(torch.equal, weights[0] or (), weights[1] or ())):
        name = type(made[0][0]).__name__
        raise UsageError(_ignoring(problem, name, before, rates))


def _made(problem: Problem, plan: Plan, lr: float) -> tuple[Optimizer, list[dict[str, Any]]]:
    """An optimizer and its groups that train something; of an own step, those in its state."""
    model = problem.make_model(0)
    optimizer = plan.make_optimizer(model, lr)
    optimizers: list[Any] = [optimizer]
    if isinstance(model, Owned):
        optimizers = [part for _, part in model.others() if hasattr(part, "param_groups")]
    groups = [group for each in optimizers for group in each.param_groups]
    trained = [group for group in groups if any(p.requires_grad for p in group["params"])]
    return optimizer, trained or groups


def _course(
    problem: Problem, plan: Plan, optimizer: Optimizer, groups: list[dict[str, Any]]
) -> Iterator[list[float]]:
    """The rates of the groups at each step [step][group]; of an own step, before the first."""
    schedule = None if problem.owns_step else plan.make_schedule(optimizer)
    yield _rates_of(groups)
    for _ in range(0 if schedule is None else plan.steps - 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns where the optimizer made no step
            schedule.step()  # type: ignore[union-attr]
        yield _rates_of(groups)


def _rates_of(groups: list[dict[str, Any]]) -> list[float]:
    return [float(group["lr"]) for group in groups]


def _same_rates(ours: list[float], theirs: list[float]) -> bool:
    """Whether no group has another rate. Rates are compared, for which 0 and 0 are the same."""
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(ours, theirs, strict=True))


def _knobs(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers among the options by which a rate may act in another way than as `lr`."""
    plain = {k: v for k, v in group.items() if k not in RATES}
    return {k: v for k, v in plain.items() if isinstance(v, (int, float, tuple))}


def _weights_after(problem: Problem, plan: Plan, lr: float) -> list[torch.Tensor] | None:
    """The weights after a few steps of seed 0; None where they have not moved."""
    model = problem.make_model(0)
    optimizer = plan.make_optimizer(model, lr)
    schedule = plan.make_schedule(optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    stream, place = BatchStream(problem, 0, 1), (0, 0)
    for step in range(min(SHOWN, plan.steps)):
        (batch,), place = stream.take(step, place)
        seed_everything(problem.torch_device, 0, "step", step)
        optimizer.zero_grad()
        loss = problem.loss(model, batch)
        if not problem.owns_step:
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if schedule is not None:
            schedule.step()
    after = [p.detach() for p in model.parameters()]
    return None if all(map(torch.equal, before, after)) else after


def _ignoring(
    problem: Problem, kind: str, before: list[list[float]], rates: tuple[float, float]
) -> str:
    """What to say of a factory that ignores its rate; `before` are those before the schedule."""
    both = f"{rates[0]:g} and {rates[1]:g}"
    if problem.owns_step:
        return (
            f"make_state ignores its learning rate: for {both} the first {SHOWN} steps give the "
            "same weights; hand the rate to the optimizers and schedulers that it makes"
        )
    if _same_rates(*before):
        found = " and ".join(f"{rate:g}" for rate in dict.fromkeys(before[0]))
        return (
            f"the optimizer factory ignores its learning rate: its {kind} has the rate {found} "
            f"whether {both.replace(' and ', ' or ')} is asked for; hand lr on, as in "
            f"lambda model, lr: {kind}(model.parameters(), lr=lr)"
        )
    return (
        f"the schedule ignores the learning rate of its optimizer: its rates are the same for "
        f"{both}; take its peak from the optimizer it is given, such as "
        "max_lr=[group['lr'] for group in optimizer.param_groups]"
    )


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


def _optimizer_hint(plan: Plan, model: nn.Module, lr: float) -> str:
    """How an optimizer factory is written, where this one ran with other arguments."""
    hint = _takes(plan.optimizer, "model, lr", "model.parameters(), lr=lr")
    if hint or isinstance(plan.optimizer, str):
        return hint
    factory: Any = plan.optimizer
    called = "; an optimizer factory is called as (model, lr)"
    others: dict[str, tuple[Any, Any]] = {
        "its parameters in the place of the model": (model.parameters(), lr),
        "the rate first": (lr, model),
    }
    for words, given in others.items():
        try:
            if isinstance(factory(*given), Optimizer):
                return (
                    f"{called}, and this one takes {words}: write it as in "
                    "lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr)"
                )
        except RAISED:
            continue
    return called if _takes_other(factory) else ""


def _takes_other(factory: Any) -> bool:
    """Whether a factory cannot be called with two arguments, as its signature says."""
    try:
        inspect.signature(factory).bind(None, None)
    except TypeError:
        return not isinstance(factory, str)
    except ValueError:  # what is written in C may have no signature
        return False
    return False


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
