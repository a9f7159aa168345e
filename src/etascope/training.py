"""The loop: feeds the engine what the search asks for, and writes the journal."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Any, NamedTuple, Protocol, Self

from etascope.call import Call
from etascope.checkpoints import Checkpoints
from etascope.engines.base import Engine, Work
from etascope.engines.choice import choose_engine
from etascope.engines.crew import Crew
from etascope.environment import describe_environment, differences, size
from etascope.journal import Journal
from etascope.plan import Plan
from etascope.problems.problem import Problem
from etascope.records import Burst, TrialId
from etascope.rehearsal import Rehearsal
from etascope.search.board import Rules
from etascope.search.grid import remaining
from etascope.state import Packed
from etascope.study import Study, open_study
from etascope.words import counted


class Progress(Protocol):
    """Is told how a study goes on; for display only, nothing depends on it."""

    def begin(self, study: Study, waiting: Mapping[TrialId, int], why: str | None = None) -> None:
        """Training starts; `waiting` are the trials still to train and their targets.

        A race trains in rounds: each begins anew, and `why` says what for.
        """

    def tick(self, trial: TrialId, step: int, loss: float, metric: float | None) -> None:
        """A step is done."""

    def burst(self, burst: Burst) -> None:
        """A burst is in the journal."""

    def note(self, text: str) -> None:
        """Something to know before training starts, in one line."""

    def stopping(self) -> None:
        """The user asked to stop; the step in progress is being finished and saved."""


class Silent:
    """Tells nobody."""

    def begin(
        self, study: Study, waiting: Mapping[TrialId, int], why: str | None = None
    ) -> None: ...
    def tick(self, trial: TrialId, step: int, loss: float, metric: float | None) -> None: ...
    def burst(self, burst: Burst) -> None: ...
    def note(self, text: str) -> None: ...
    def stopping(self) -> None: ...


class Means(NamedTuple):
    """What there is to train with: see `sweep` for engine, workers and address."""

    engine: str
    crew: Crew
    cost: Rehearsal
    workers: int | None
    address: str | None


class Training:
    """The loop of one call of `sweep` or `find`; a context manager, which frees the engine.

    Args:
        journal: of the study, open for writing.
        problem, plan: what is trained and how.
        means: what with.
        progress: is told how it goes.
    """

    def __init__(
        self, journal: Journal, problem: Problem, plan: Plan, means: Means, progress: Progress
    ) -> None:
        self._journal, self._problem, self._plan = journal, problem, plan
        self._means, self._progress = means, progress
        self._engine: Engine | None = None
        self._held = ExitStack()
        self.study = self._read()
        self._waiting: dict[TrialId, int] = {}
        # The steps of the checkpoints: of every trial that has begun and may go on.
        self._kept = {
            h.trial: h.resume_step
            for h in self.study.trials
            if h.resume_step and h.resume_step < plan.steps
        }
        self._checkpoints = Checkpoints(journal.directory)
        self._checkpoints.keep_only(self._kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def called(self, call: Call) -> None:
        """Note what is asked for, where the study was not made by the same call before."""
        if call not in self.study.calls:
            self._journal.called(call.to_record())
            self.study = open_study(self._journal.directory)

    def aim(self, rules: Rules) -> None:
        """Note the rules of the race that trials are trained for from here on, and announce it."""
        if self.study.rules != rules:
            self._journal.aim(asdict(rules))
            self.study = self._read()
        if not self.study.concluded:
            trainings = f"{rules.budget:g} full trainings of {counted(rules.horizon, 'step')}"
            self._progress.note(f"at most {trainings}, fewer if nothing is left open")

    def conclude(self) -> Study:
        """Note the answer of a race that has come to its end, and return the study."""
        if not self.study.concluded and self.study.finding is not None:
            self._journal.conclude(self.study.finding.to_dict())
            self.study = self._read()
        return self.study

    def train(
        self, targets: Mapping[TrialId, int], ahead: float = 0.0, why: str | None = None
    ) -> Study:
        """Train until every trial is where it is asked to be, and return the study.

        Args:
            targets: the step that each trial is to reach.
            ahead: steps of work in all that later calls may ask for.
            why: what they are trained for, in a line.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
        """
        asked = {h.trial: h.target for h in self.study.trials}
        if any(asked.get(trial, 0) < target for trial, target in targets.items()):
            self._journal.request(targets)
            self.study = self._read()
        self._waiting = remaining(targets, self.study.trials)
        if self._waiting and self._engine is None:
            self._move()
        engine = self._hire(ahead) if self._waiting and self._engine is None else self._engine
        self._progress.begin(self.study, self._waiting, why)
        if engine is None or not self._waiting:
            return self.study
        with _interruptible(self._progress) as stop:
            work, tick = self._work(), self._progress.tick
            for burst, state in engine.run(work, tick=tick, stopping=stop.is_set):
                self._record(burst, state)
            if stop.is_set():
                raise KeyboardInterrupt
        self.study = self._read()
        return self.study

    def _read(self) -> Study:
        """The study as it stands, which is as this process left it."""
        self._journal.check()
        return open_study(self._journal.directory)

    def _move(self) -> None:
        """Note in the journal, and tell, that it goes on under other versions or elsewhere."""
        here = describe_environment()
        if said := differences(self.study.environments[-1], here):
            self._journal.move(here)
            self._progress.note(
                f"this study was trained under something else before ({said}): "
                "the same training may give other numbers now"
            )

    def _hire(self, ahead: float) -> Engine:
        steps = sum(t - self._kept.get(trial, 0) for trial, t in self._waiting.items())
        chosen, line = choose_engine(
            self._means.engine,
            self._problem,
            self._plan,
            workers=self._means.workers,
            crew=self._means.crew,
            seconds=max(steps, ahead) * self._means.cost.step_seconds,
            address=self._means.address,
        )
        self._engine = self._held.enter_context(chosen)
        self._progress.note(line)
        self._progress.note(self._disk(self._means.cost.state_bytes, chosen.at_once))
        return self._engine

    def _work(self) -> Iterator[Work]:
        for trial, target in self._waiting.items():
            step = self._kept.get(trial, 0)
            mark = self.study.mark(trial, step)
            state = self._checkpoints.load(trial, step, mark) if step else None
            yield Work(trial, target, step, state)

    def _record(self, burst: Burst, state: Packed | None) -> None:
        """First the state, then the line that makes it count, then the state before goes."""
        if burst.start == burst.stop and burst.failure is None:
            return
        trial = burst.trial
        mark = None if state is None else self._checkpoints.save(trial, burst.stop, state)
        self._journal.append(burst, mark)
        tried_again = burst.failure is not None and not burst.failure.final
        before = None if tried_again else self._kept.pop(trial, None)
        if before is not None and before != burst.stop:
            self._checkpoints.drop(trial, before)
        if state is not None:
            self._kept[trial] = burst.stop
        self._progress.burst(burst)

    def _disk(self, state_bytes: int, at_once: int) -> str:
        """The most that checkpoints can take: paused trials, those in progress, and one anew."""
        paused = sum(target < self._plan.steps for target in self._waiting.values())
        bound = state_bytes * (paused + min(at_once, len(self._waiting)) + 1)
        free = shutil.disk_usage(self._journal.directory).free
        warning = "" if bound < free else f", but only {size(free)} are free there"
        return f"checkpoints take at most {size(bound)} in {self._journal.directory}{warning}"


@contextmanager
def _interruptible(progress: Progress) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one raises KeyboardInterrupt.

    The caller's handler is put back on leaving. Only the main thread may handle signals; in
    another one the caller's own handling stays.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def interrupt(signum: int, frame: FrameType | None) -> Any:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        progress.stopping()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
