"""What every engine does: take work, give back bursts and states as they come.

An engine keeps nothing between two calls and decides nothing. Pausing is asking for a smaller
target, resuming is work with a state, stopping early is not asking again, a failure is part of
the burst; so the search, the journal and a crash need no further protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from etascope.plan import Plan
from etascope.problems.problem import Problem
from etascope.records import Burst, TrialId
from etascope.trial import Stopping, Tick, TrialState


class Work(NamedTuple):
    """Train `trial` from `state` (None: from the start) to `target` steps."""

    trial: TrialId
    state: TrialState | None
    target: int


class Done(NamedTuple):
    """A burst of a trial and its state after it; None where it cannot go on."""

    burst: Burst
    state: TrialState | None


class Engine(Protocol):
    """Trains trials."""

    def run(
        self,
        problem: Problem,
        plan: Plan,
        work: Iterable[Work],
        *,
        tick: Tick | None = None,
        stopping: Stopping | None = None,
    ) -> Iterator[Done]:
        """Train each piece of work to its target, one burst a rung.

        Args:
            problem, plan: what to train and how.
            work: in order of importance.
            tick: told of every step, for display only.
            stopping: asked before every step; once true, trials end after the step in progress.

        Yields:
            The bursts of each trial in order; trials may be interleaved.
        """
        ...
