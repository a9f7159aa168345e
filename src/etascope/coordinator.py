"""The loop: asks the search what to train, feeds the engine, writes the journal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from etascope.arguments import check_out
from etascope.checkpoints import Checkpoints
from etascope.engines.base import Work
from etascope.engines.serial import SerialEngine
from etascope.environment import describe_environment
from etascope.errors import UsageError
from etascope.factories import check_factories
from etascope.journal import HEADER, Journal, to_json
from etascope.plan import Plan, check_seeds, check_targets
from etascope.problems.checks import inspect
from etascope.problems.problem import Problem
from etascope.problems.registry import get_problem
from etascope.records import Burst, ProblemFacts, TrialId
from etascope.search.grid import remaining, targets_of
from etascope.study import Study, open_study

if TYPE_CHECKING:
    import os

    from etascope.plan import OptimizerFactory, ScheduleFactory


class Progress(Protocol):
    """Is told how a study goes on; for display only, nothing depends on it."""

    def begin(self, study: Study, waiting: Mapping[TrialId, int]) -> None:
        """Training starts; `waiting` are the trials still to train and their targets."""

    def tick(self, trial: TrialId, step: int, loss: float, metric: float | None) -> None:
        """A step is done."""

    def burst(self, burst: Burst) -> None:
        """A burst is in the journal."""

    def stopping(self) -> None:
        """The user asked to stop; the step in progress is being finished and saved."""


def sweep(
    problem: Problem | str,
    lrs: Iterable[float] | Mapping[float, int],
    *,
    steps: int | None = None,
    epochs: int | None = None,
    seeds: int | Iterable[int] = 1,
    optimizer: str | OptimizerFactory = "adam",
    schedule: str | ScheduleFactory = "constant",
    clip: float | None = None,
    accumulate: int = 1,
    weight_decay: float | None = None,
    rungs: Iterable[int] = (),
    probe_every: int = 10,
    rung_examples: int = 1000,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Study:
    """Train a problem at several learning rates, paired by seed, and return the study.

    A trial is a pure function of (problem, plan, rate, seed). Killed at any moment, the same call
    goes on from the last rung and ends with the same records. Ctrl-C ends the step in progress,
    saves it and raises KeyboardInterrupt; a second Ctrl-C does so at once.

    Args:
        problem: a Problem, or the name of one (see `problems.registry.get_problem`).
        lrs: learning rates, positive; or a mapping from rate to the step at which it is paused.
        steps: the horizon, in optimizer steps; or give `epochs`.
        epochs: the horizon, in passes over the training data.
        seeds: how many seeds (0, 1, ...), or which.
        optimizer, schedule, clip, accumulate, weight_decay, rungs, probe_every, rung_examples:
            see `Plan`.
        out: the study directory; by default `studies/<problem>-<optimizer>-<steps>`.
        progress: is told how it goes.

    Returns:
        The study, complete.

    Raises:
        UsageError: if something passed cannot work, or `out` holds another study; before any
            training.
        StudyError: if the directory cannot be read or written, or another process writes there.
        KeyboardInterrupt: after Ctrl-C.

    Example:
        >>> import tempfile, torch
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> line = Problem(
        ...     model=lambda: torch.nn.Linear(1, 1),
        ...     loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        ...     train=(x, 3 * x), valid=(x, 3 * x), batch_size=16,
        ... )
        >>> with tempfile.TemporaryDirectory() as out:
        ...     study = sweep(line, [1e-4, 0.1, 50.0], steps=60, optimizer="sgd", out=out)
        >>> study.best, study.verdicts[50.0].name
        (0.1, 'diverged')
    """
    if isinstance(problem, str):
        problem = get_problem(problem)
    if not isinstance(problem, Problem):
        raise UsageError(f"problem is a {type(problem).__name__}; pass an etascope.Problem")
    plan = Plan(
        steps=_horizon(problem, steps, epochs, accumulate),
        optimizer=optimizer,
        schedule=schedule,
        clip=clip,
        accumulate=accumulate,
        weight_decay=weight_decay,
        rungs=rungs,  # type: ignore[arg-type]
        probe_every=probe_every,
        rung_examples=rung_examples,
    )
    targets = targets_of(check_targets(lrs, plan.steps), check_seeds(seeds))
    directory = check_out(_default_out(problem, plan) if out is None else out)
    facts = inspect(problem, plan.rung_examples)
    check_factories(problem, plan, max(t.lr for t in targets))
    with Journal(directory) as journal:
        _open(journal, problem, plan, facts)
        _train(journal, problem, plan, targets, progress)
    return open_study(directory)


def _horizon(problem: Problem, steps: int | None, epochs: int | None, accumulate: int) -> int:
    if (steps is None) == (epochs is None):
        raise UsageError("give the horizon as either steps or epochs")
    if steps is not None:
        return steps
    batches = problem.sources["train"].batches_per_epoch
    if batches is None:
        raise UsageError("train does not say how many batches an epoch has; give steps instead")
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise UsageError(f"epochs is {epochs!r}; it must be a whole number of 1 or more")
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise UsageError(f"accumulate is {accumulate!r}; it must be a whole number of 1 or more")
    return max(1, epochs * batches // accumulate)


def _default_out(problem: Problem, plan: Plan) -> Path:
    optimizer = plan.describe()["optimizer"].rpartition(":")[2]
    name = f"{problem.name}-{optimizer}-{plan.steps}"
    return Path("studies") / "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _open(journal: Journal, problem: Problem, plan: Plan, facts: ProblemFacts) -> None:
    """Write the header of a new study, or make sure that this is the study that was begun."""
    directory = journal.directory
    described = to_json(plan.describe())
    if not (directory / HEADER).exists():
        journal.write_header(
            {
                "reference": problem.reference,
                "problem": asdict(facts),
                "plan": described,
                "environment": describe_environment(),
            }
        )
        return
    study = open_study(directory)
    other = "; name another --out for this one, or repeat the command that began it"
    differences = [
        f"{name} {study.plan.get(name)} instead of {value}"
        for name, value in described.items()
        if study.plan.get(name) != value
    ]
    if differences:
        raise UsageError(f"{directory} holds a study with {', '.join(differences)}{other}")
    if study.problem.fingerprint != facts.fingerprint:
        raise UsageError(
            f"{directory} holds a study of another problem ({study.problem.name}): "
            f"the initial weights, the first batch or the first loss differ{other}"
        )


def _train(
    journal: Journal,
    problem: Problem,
    plan: Plan,
    targets: Mapping[TrialId, int],
    progress: Progress | None,
) -> None:
    study = open_study(journal.directory)
    asked = {h.trial: h.target for h in study.trials}
    if any(asked.get(trial, 0) < target for trial, target in targets.items()):
        journal.request(targets)
    waiting = remaining(targets, study.trials)
    steps = {h.trial: h.step for h in study.trials}
    checkpoints = Checkpoints(journal.directory)
    # What may go on: every trial that has begun, has not failed and is short of the horizon.
    alive = {h.trial: h.step for h in study.trials if h.failure is None and 0 < h.step < plan.steps}
    checkpoints.keep_only(alive)

    def work() -> Iterator[Work]:
        for trial, target in waiting.items():
            step = steps.get(trial, 0)
            yield Work(trial, checkpoints.load(trial, step) if step else None, target)

    if progress is not None:
        progress.begin(open_study(journal.directory), waiting)
    with _interruptible(progress) as stop:
        done = SerialEngine().run(
            problem,
            plan,
            work(),
            tick=None if progress is None else progress.tick,
            stopping=stop.is_set,
        )
        for burst, state in done:
            if burst.start == burst.stop and burst.failure is None:
                continue
            trial = burst.trial
            alive.pop(trial, None)
            if state is not None and state.step < plan.steps:
                checkpoints.save(trial, state)
                alive[trial] = state.step
            journal.append(burst)
            checkpoints.keep_only(alive)
            if progress is not None:
                progress.burst(burst)
        if stop.is_set():
            raise KeyboardInterrupt


@contextmanager
def _interruptible(progress: Progress | None) -> Iterator[threading.Event]:
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
        if progress is not None:
            progress.stopping()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
