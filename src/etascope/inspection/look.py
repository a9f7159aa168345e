"""What a report shows of the inside: the graph, one optimizer step, and the numbers in an update.

It is captured where the problem is at hand and kept as JSON in the study's directory, so that it
can be drawn again from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, TypeVar

from etascope.errors import RAISED
from etascope.inspection.callstack import CallStack, callstack
from etascope.inspection.capture import capture_problem
from etascope.inspection.graph import Graph, to_json
from etascope.inspection.update import Update, measure_update
from etascope.plan import Plan
from etascope.problems.problem import Problem
from etascope.schema import decode

FORMAT = 1
Made = TypeVar("Made")


class Look(NamedTuple):
    """The inside of a training; a part is None where it could not be captured."""

    graph: Graph | None
    step: CallStack | None
    updates: tuple[Update, ...]
    obstacles: tuple[str, ...]
    """A sentence for each part that could not."""


def look(problem: Problem, plan: Plan, lrs: Iterable[float]) -> Look:
    """Capture all of it, on copies; what fails is told and leaves the rest.

    Args:
        problem: what is trained.
        plan: its optimizer is looked at.
        lrs: the rates at which an update is measured.
    """
    obstacles: list[str] = []

    def attempt(what: str, make: Callable[[], Made]) -> Made | None:
        try:
            return make()
        except RAISED as error:
            obstacles.append(f"{what}: {' '.join(str(error).split())[:300]}")
            return None

    graph = attempt("the graph", lambda: capture_problem(problem, plan.optimizer))
    step = attempt("the optimizer's step", lambda: callstack(problem, plan.optimizer))
    updates = [
        attempt(f"an update at {lr:g}", lambda lr=lr: measure_update(problem, plan, lr))  # type: ignore[misc]
        for lr in lrs
    ]
    return Look(graph, step, tuple(filter(None, updates)), tuple(obstacles))


def look_to_json(found: Look) -> dict[str, Any]:
    """All of it as JSON values."""
    return {
        "format": FORMAT,
        "graph": None if found.graph is None else to_json(found.graph),
        "step": None if found.step is None else asdict(found.step),
        "updates": [_update_to_json(update) for update in found.updates],
        "obstacles": list(found.obstacles),
    }


def look_from_json(values: Mapping[str, Any]) -> Look:
    """What `look_to_json` wrote.

    Raises:
        ValueError: if it is not that.
    """
    if values.get("format") != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    found = decode(Look, {name: part for name, part in values.items() if name != "format"})
    if found.step is not None and not 0 < found.step.root.seconds < math.inf:
        raise ValueError("its step takes no time")
    return found


def _update_to_json(update: Update) -> dict[str, Any]:
    return {**update._asdict(), "parameters": [p._asdict() for p in update.parameters]}
