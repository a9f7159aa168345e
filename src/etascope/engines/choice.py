"""Which engine trains a study: the one asked for, or what fits the machine and the work."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

import torch

from etascope.engines.base import Engine
from etascope.engines.crew import Crew
from etascope.engines.processes import ProcessesEngine
from etascope.engines.ray import RayEngine
from etascope.engines.serial import SerialEngine
from etascope.engines.stacked import StackedEngine
from etascope.environment import usable_cores
from etascope.errors import UsageError
from etascope.plan import ENGINES, Plan
from etascope.problems.problem import Problem
from etascope.randomness import spared_compiler
from etascope.records import TrialId
from etascope.trial import Trial

WORTH_STARTING = 10.0  # seconds of work below which starting workers takes longer than it saves


class Rehearsal(NamedTuple):
    """What a step costs here, and how large a state is after it."""

    step_seconds: float
    state_bytes: int


def rehearse(problem: Problem, plan: Plan, trial: TrialId) -> Rehearsal:
    """Train a trial for three steps, time the last two, and forget it.

    What goes wrong here is left to the checks and to the study, which can tell it better.
    """
    ticks: list[float] = []
    rehearsal = Trial(problem, plan, trial)
    with suppress(Exception), spared_compiler():
        rehearsal.advance(
            plan.steps + 1,  # never reached, so nothing is evaluated
            tick=lambda *_: ticks.append(time.perf_counter()),
            stopping=lambda: len(ticks) >= min(3, plan.steps),
        )
        seconds = (ticks[-1] - ticks[0]) / max(1, len(ticks) - 1)
        return Rehearsal(seconds, _bytes(vars(rehearsal.state())))
    return Rehearsal(0.0, 0)


def recruit(name: str, problem: Problem, workers: int | None, trials: int, seconds: float) -> Crew:
    """The worker processes; already starting if they are needed, since that takes seconds.

    Args:
        name: one of `ENGINES`.
        problem: what is to be trained.
        workers: how many at most; None for one a core.
        trials: how many there are to train.
        seconds: about how long that takes on one core.

    Raises:
        UsageError: for a number of workers with an engine that has none.
    """
    if workers is not None and name == "serial":
        raise UsageError("engine serial has no workers; leave workers out, or use processes")
    on_cpu = problem.torch_device.type == "cpu"
    needed = name == "processes" or (name == "auto" and on_cpu and seconds >= WORTH_STARTING)
    return Crew(min(workers or usable_cores(), trials), early=needed)


def choose_engine(
    name: str,
    problem: Problem,
    plan: Plan,
    *,
    workers: int | None,
    crew: Crew,
    seconds: float,
    address: str | None = None,
) -> tuple[Engine, str]:
    """The engine, and one line that says what it is and why.

    Args:
        name: one of `ENGINES`.
        problem, plan: what it is to train.
        workers: how many trials at a time; None for what the engine finds best.
        crew: the worker processes that it may have.
        seconds: about how long the work takes on one core.
        address: of a running Ray cluster; None for one of this machine.

    Raises:
        UsageError: if there is no such engine, or it cannot train this problem.
    """
    engine: Engine
    if name == "serial":
        engine, why = SerialEngine(problem, plan), ""
    elif name == "processes":
        engine, why = ProcessesEngine(problem, plan, crew), ""
    elif name == "stacked":
        engine, why = StackedEngine(problem, plan, workers), ""
    elif name == "ray":
        engine, why = RayEngine(problem, plan, workers, address), ""
    elif name == "auto":
        engine, why = _automatic(problem, plan, workers, crew, seconds)
    else:
        raise UsageError(f"no engine is called {name!r}; choose from {', '.join(ENGINES)}")
    return engine, f"engine {engine.about}{why and f' ({why})'}"


def _automatic(
    problem: Problem, plan: Plan, workers: int | None, crew: Crew, seconds: float
) -> tuple[Engine, str]:
    if problem.torch_device.type != "cpu":
        return StackedEngine(problem, plan, workers), "the default on an accelerator"
    if seconds < WORTH_STARTING:
        return SerialEngine(problem, plan), f"about {seconds:.0f} s of work; workers would not pay"
    try:
        return ProcessesEngine(problem, plan, crew), "the default on a CPU"
    except UsageError as error:
        return SerialEngine(problem, plan), f"chosen because {error}"


def _bytes(value: object) -> int:
    """The memory of all tensors in a structure."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0
