"""The loop: asks the search what to train, feeds the engine, writes the journal."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from etascope.checkpoints import Checkpoints
from etascope.engines.base import Work
from etascope.engines.choice import choose_engine, rehearse
from etascope.environment import describe_environment, size
from etascope.errors import EtascopeError, UsageError
from etascope.journal import HEADER, Journal, to_json
from etascope.plan import ENGINES, Plan, check_seeds, check_targets, whole
from etascope.problems.checks import inspect
from etascope.problems.problem import Problem
from etascope.problems.registry import get_problem
from etascope.randomness import undisturbed
from etascope.records import RETRYABLE, Burst, ProblemFacts, TrialId
from etascope.search.grid import remaining, targets_of
from etascope.state import Packed
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

    def note(self, text: str) -> None:
        """Something to know before training starts, in one line."""

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
    precision: str = "float32",
    engine: str = "auto",
    workers: int | None = None,
    address: str | None = None,
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
        optimizer, schedule, clip, accumulate, weight_decay, rungs, probe_every, rung_examples,
            precision: see `Plan`.
        engine: what trains: `serial`, `processes` (one worker a core), `ray` (one actor a CPU of a
            Ray cluster), or `auto`, which picks and says why. The records are the same whatever
            trains.
        workers: how many trials at a time; by default as many as the machine or the cluster has
            cores.
        address: of a running Ray cluster, for engine `ray`: `host:port` or `auto`; by default one
            is started on this machine, for this study only.
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
        precision=precision,
    )
    if engine not in ENGINES:
        raise UsageError(f"no engine is called {engine!r}; choose from {', '.join(ENGINES)}")
    if workers is not None:
        workers = whole("workers", workers, least=1)
    if address is not None and engine != "ray":
        raise UsageError(f"address is of a Ray cluster, and engine is {engine!r}; use engine ray")
    targets = targets_of(check_targets(lrs, plan.steps), check_seeds(seeds))
    directory = Path(out) if out is not None else _default_out(problem, plan)
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file; --out names a directory")
    facts = inspect(problem, plan.rung_examples)
    _check_optimizer(problem, plan, max(t.lr for t in targets))
    with Journal(directory) as journal:
        _open(journal, problem, plan, facts)
        training = _Training(journal, problem, plan, targets, progress or Silent())
        training.run(engine, workers, address)
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


def _check_optimizer(problem: Problem, plan: Plan, lr: float) -> None:
    """Build optimizer and schedule once, so that a mistake in them shows before training."""
    from torch.optim import Optimizer

    with undisturbed(problem.torch_device):
        model = problem.make_model(0)
        part = "optimizer"
        try:
            made = plan.make_optimizer(model, lr)
            if not isinstance(made, Optimizer):
                raise UsageError(
                    f"the optimizer factory returned a {type(made).__name__}; "
                    "it must return a torch.optim.Optimizer"
                )
            made.step()  # without gradients nothing moves, but a needed closure shows
            part = "schedule"
            plan.make_schedule(made)
        except EtascopeError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise UsageError(f"the {part} raised {type(error).__name__}: {text}") from error


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


class _Training:
    """The loop of one call of `sweep`.

    Args:
        journal: of the study, open for writing.
        problem, plan: what is trained and how.
        targets: the step that each trial is to reach.
        progress: is told how it goes.
    """

    def __init__(
        self,
        journal: Journal,
        problem: Problem,
        plan: Plan,
        targets: Mapping[TrialId, int],
        progress: Progress,
    ) -> None:
        self._journal, self._problem, self._plan = journal, problem, plan
        self._progress = progress
        study = open_study(journal.directory)
        asked = {h.trial: h.target for h in study.trials}
        if any(asked.get(trial, 0) < target for trial, target in targets.items()):
            journal.request(targets)
            study = open_study(journal.directory)
        self._study = study
        self._waiting = remaining(targets, study.trials)
        # The steps of the checkpoints: of every trial that has begun and may go on.
        self._kept = {
            h.trial: h.step for h in study.trials if h.failure is None and 0 < h.step < plan.steps
        }
        self._checkpoints = Checkpoints(journal.directory)
        self._checkpoints.keep_only(self._kept)

    def run(self, engine: str, workers: int | None, address: str | None = None) -> None:
        """Train until every trial is where it was asked to be; KeyboardInterrupt after Ctrl-C."""
        if not self._waiting:
            self._progress.begin(self._study, {})
            return
        cost = rehearse(self._problem, self._plan, next(iter(self._waiting)))
        steps = sum(t - self._kept.get(trial, 0) for trial, t in self._waiting.items())
        chosen, line = choose_engine(
            engine,
            self._problem,
            self._plan,
            workers,
            steps * cost.step_seconds,
            address=address,
        )
        self._progress.note(line)
        self._progress.note(self._disk(cost.state_bytes, chosen.at_once))
        self._progress.begin(self._study, self._waiting)
        with chosen, _interruptible(self._progress) as stop:
            work, tick = self._work(), self._progress.tick
            for burst, state in chosen.run(work, tick=tick, stopping=stop.is_set):
                self._record(burst, state)
            if stop.is_set():
                raise KeyboardInterrupt

    def _work(self) -> Iterator[Work]:
        for trial, target in self._waiting.items():
            step = self._kept.get(trial, 0)
            state = self._checkpoints.load(trial, step) if step else None
            yield Work(trial, target, step, state)

    def _record(self, burst: Burst, state: Packed | None) -> None:
        """First the state, then the line that makes it count, then the state before goes."""
        if burst.start == burst.stop and burst.failure is None:
            return
        trial = burst.trial
        if state is not None:
            self._checkpoints.save(trial, burst.stop, state)
        self._journal.append(burst)
        retryable = burst.failure is not None and burst.failure.cause in RETRYABLE
        before = None if retryable else self._kept.pop(trial, None)
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


class Silent:
    """Tells nobody."""

    def begin(self, study: Study, waiting: Mapping[TrialId, int]) -> None: ...
    def tick(self, trial: TrialId, step: int, loss: float, metric: float | None) -> None: ...
    def burst(self, burst: Burst) -> None: ...
    def note(self, text: str) -> None: ...
    def stopping(self) -> None: ...


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
