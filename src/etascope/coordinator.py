"""`sweep`: from what the user asks to a study on the disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from etascope.encoding import to_json
from etascope.engines.choice import recruit, rehearse
from etascope.environment import describe_environment
from etascope.errors import EtascopeError, UsageError
from etascope.journal import HEADER, Journal
from etascope.plan import ENGINES, Plan, check_seeds, check_targets, whole
from etascope.problems.checks import inspect
from etascope.problems.problem import Problem
from etascope.problems.registry import get_problem
from etascope.randomness import undisturbed
from etascope.records import ProblemFacts
from etascope.search.grid import targets_of
from etascope.study import Study, open_study
from etascope.training import Progress, Silent, Training

if TYPE_CHECKING:
    import os

    from etascope.plan import OptimizerFactory, ScheduleFactory


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
        engine: what trains: `serial`, `processes` (one worker a core), `stacked` (all rates of a
            seed as one program, for accelerators), or `auto`, which picks and says why. The
            records are the same whatever trains, but for the rounding of `stacked`.
        workers: how many trials at a time; by default as many as the machine has cores, or as
            many as the accelerator has memory for.
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
    targets = targets_of(check_targets(lrs, plan.steps), check_seeds(seeds))
    directory = Path(out) if out is not None else _default_out(problem, plan)
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file; --out names a directory")
    # The smallest rate is the least likely to fail within the few steps that are timed.
    cost = rehearse(problem, plan, min(targets))
    seconds = cost.step_seconds * sum(targets.values())
    with recruit(engine, problem, workers, len(targets), seconds) as crew:
        facts = inspect(problem, plan.rung_examples)
        _check_optimizer(problem, plan, max(t.lr for t in targets))
        with Journal(directory) as journal:
            _open(journal, problem, plan, facts)
            training = Training(journal, problem, plan, targets, progress or Silent())
            training.run(engine, workers, crew, cost)
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
