"""What every engine does: take work, give back bursts and states as they come.

An engine keeps nothing between two calls and decides nothing. Starting is work without a state,
resuming is work with one, pausing is asking for a smaller target, stopping early is not asking
again, cancelling is closing the iterator, and a failure is part of the burst; so the search, the
journal and a crash need no further protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple, Protocol, Self

from etascope.errors import EtascopeError, text_of
from etascope.plan import Plan
from etascope.problems.problem import Problem
from etascope.randomness import spared_compiler
from etascope.records import Burst, Failure, TrialId
from etascope.state import Packed, TrialState, pack, unpack
from etascope.trial import REMEDY_EXCEPTION, Stopping, Tick, Trial


class Work(NamedTuple):
    """Train `trial` from `state`, taken after `step` updates, to `target` steps."""

    trial: TrialId
    target: int
    step: int = 0
    state: Packed | None = None


class Done(NamedTuple):
    """A burst of a trial and its state after it; None where it cannot go on."""

    burst: Burst
    state: Packed | None


class Engine(Protocol):
    """Trains trials of one problem and plan; a context manager, which frees what it holds.

    Attributes:
        about: what trains where, in one line.
        at_once: how many trials are in progress at a time, at most.
    """

    about: str
    at_once: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def run(
        self, work: Iterable[Work], *, tick: Tick | None = None, stopping: Stopping | None = None
    ) -> Iterator[Done]:
        """Train each piece of work to its target, one burst a rung.

        Args:
            work: in order of importance; the next piece is only asked for when there is room to
                train it, so a search can decide late.
            tick: told of steps as they are done, for display only; some may be left out.
            stopping: asked again and again; once true, trials end after the step in progress.

        Yields:
            The bursts of each trial in order; trials may be interleaved. Closing the iterator
            cancels all that is in progress and leaves no process behind.
        """
        ...


def train(
    problem: Problem,
    plan: Plan,
    work: Work,
    tick: Tick | None = None,
    stopping: Stopping | None = None,
) -> Iterator[Done]:
    """One piece of work in this process, with its states as packed bytes."""
    for burst, state in bursts_of(problem, plan, work, tick, stopping):
        yield Done(burst, None if state is None else pack(state))


def bursts_of(
    problem: Problem,
    plan: Plan,
    work: Work,
    tick: Tick | None = None,
    stopping: Stopping | None = None,
) -> Iterator[tuple[Burst, TrialState | None]]:
    """One piece of work in this process: what a worker does, wherever it stands.

    The tensors of a state are the trial's own; they hold until the next burst is asked for.
    """
    state = None if work.state is None else unpack(work.state)
    trial = Trial(problem, plan, work.trial, state)
    for stop in stops_of(plan, trial.step, work.target):
        if stopping is not None and stopping():
            return
        burst, after = _advance(trial, stop, tick, stopping)
        yield burst, after
        if burst.failure is not None:
            return


def _advance(
    trial: Trial, stop: int, tick: Tick | None, stopping: Stopping | None
) -> tuple[Burst, TrialState | None]:
    """A burst and the state after it. Whatever code of the user's raises ends this trial only.

    Raises:
        EtascopeError: what etascope itself refuses.
        KeyboardInterrupt: a Ctrl-C.
    """
    start, burst = trial.step, None
    try:
        burst = trial.advance(stop, tick, stopping)
        return burst, state_after(trial, burst)
    except (EtascopeError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - classes of the user's own may be no Exception
        failure = Failure(trial.step, "exception", None, text_of(error, 500), REMEDY_EXCEPTION)
        if burst is not None:
            return replace(burst, failure=burst.failure or failure), None
        # The numbers of the burst are lost; the records go on from where it began.
        failure = replace(failure, step=start)
        return Burst(trial.id, start, start, (), (), (), (), failure, 0.0), None


def stops_of(plan: Plan, step: int, target: int) -> list[int]:
    """Where a trial that goes on from `step` ends its bursts: the rungs between, and its target."""
    return [*(rung for rung in plan.rungs if step < rung < target), target]


def state_after(trial: Trial, burst: Burst) -> TrialState | None:
    """What a trial goes on from after the burst that it has just ended."""
    ended = burst.failure is not None or burst.stop >= trial.plan.steps
    with spared_compiler():
        return None if ended else trial.state()
