"""One trial after another in this process: the readable oracle of every other engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

from etascope.engines.base import Done, Work, train
from etascope.plan import Plan
from etascope.problems.problem import Problem
from etascope.trial import Stopping, Tick


class SerialEngine:
    """Trains one trial after another; see `etascope.engines.base.Engine`."""

    about = "serial: one trial after another in this process, on one thread"
    at_once = 1

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self._problem, self._plan = problem, plan

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def run(
        self, work: Iterable[Work], *, tick: Tick | None = None, stopping: Stopping | None = None
    ) -> Iterator[Done]:
        """Train each piece of work to its target before the next one begins."""
        for piece in work:
            if stopping is not None and stopping():
                return
            yield from train(self._problem, self._plan, piece, tick, stopping)
