"""One trial after another in this process: the readable oracle of every other engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from etascope.engines.base import Done, Work
from etascope.plan import Plan
from etascope.problems.problem import Problem
from etascope.trial import Stopping, Tick, Trial


class SerialEngine:
    """Trains one trial after another; see `etascope.engines.base.Engine`."""

    def run(
        self,
        problem: Problem,
        plan: Plan,
        work: Iterable[Work],
        *,
        tick: Tick | None = None,
        stopping: Stopping | None = None,
    ) -> Iterator[Done]:
        """Train each piece of work to its target before the next one begins."""
        for trial_id, state, target in work:
            trial = Trial(problem, plan, trial_id, state)
            stops = [rung for rung in plan.rungs if trial.step < rung < target] + [target]
            for stop in stops:
                if stopping is not None and stopping():
                    return
                burst = trial.advance(stop, tick, stopping)
                yield Done(burst, None if burst.failure else trial.snapshot())
                if burst.failure:
                    break
