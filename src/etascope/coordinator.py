"""`sweep` and `find`: from what the user asks to a study on the disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from etascope.arguments import check_out, items, positive, whole
from etascope.call import TOLERANCE, Call, plain_rungs, plain_seeds, plain_targets
from etascope.caller import left_as_it_was
from etascope.engines.choice import recruit
from etascope.errors import UsageError
from etascope.factories import check_factories, lr_course
from etascope.journal import Journal
from etascope.opening import open_or_begin
from etascope.plan import BUDGET, ENGINES, Plan, check_seeds, check_targets
from etascope.problems.checks import Parts, check_parts, gather_facts
from etascope.problems.owned import own_step
from etascope.problems.problem import Problem
from etascope.problems.registry import get_problem
from etascope.records import TrialId
from etascope.rehearsal import rehearse
from etascope.search.board import Rules
from etascope.search.finding import Finding, chance_score, follow
from etascope.search.grid import targets_of
from etascope.search.race import ladder_of, stops_of
from etascope.study import Study
from etascope.training import Means, Progress, Silent, Training

if TYPE_CHECKING:
    import os

    from etascope.plan import OptimizerFactory, ScheduleFactory

# Where `find` begins: about half decades, in rates that can be typed.
LADDER = tuple(float(f"{k}e{e}") for e in range(-5, 2) for k in (1, 3))[:-1]


@left_as_it_was()
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
    skip_unusable: bool = False,
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
            precision, skip_unusable: see `Plan`.
        engine: what trains: `serial`, `processes` (one worker a core), `stacked` (all rates of a
            seed as one program, for accelerators), `ray` (one actor a CPU of a Ray cluster), or
            `auto`, which picks and says why. The records are the same whatever trains, but for the
            rounding of `stacked`.
        workers: how many trials at a time; by default as many as the machine or the cluster has
            cores, or as many as the accelerator has memory for.
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
    problem, named = _problem(problem), items(rungs)
    plan = Plan(
        steps=_horizon(problem, steps, epochs, accumulate),
        optimizer=own_step if problem.owns_step else optimizer,
        schedule=schedule,
        clip=clip,
        accumulate=accumulate,
        weight_decay=weight_decay,
        rungs=rungs if named is None else named,  # type: ignore[arg-type]
        probe_every=probe_every,
        rung_examples=rung_examples,
        precision=precision,
        skip_unusable=skip_unusable,
    )
    rates, chosen = check_targets(lrs, plan.steps), check_seeds(seeds)
    targets = targets_of(rates, chosen)
    call = Call.of(
        "sweep",
        plan,
        lrs=plain_targets(rates, plan.steps),
        epochs=epochs,
        seeds=plain_seeds(chosen),
        rungs=plain_rungs(named or (), plan.steps),
        engine=engine,
        workers=workers,
        **_own(problem),
    )
    directory = _directory(out, problem, plan)
    parts = check_parts(problem, plan.skip_unusable)
    problem = parts.problem
    request = _Request(parts, engine, workers, address, directory, progress, call)
    with _training(problem, plan, request, list(targets), sum(targets.values())) as training:
        study = training.train(targets)
    study.source = problem, plan
    return study


@left_as_it_was()
def find(
    problem: Problem | str,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    budget: float = BUDGET,
    optimizer: str | OptimizerFactory = "adam",
    schedule: str | ScheduleFactory = "constant",
    clip: float | None = None,
    accumulate: int = 1,
    weight_decay: float | None = None,
    lrs: Iterable[float] = LADDER,
    seed: int = 0,
    objective: str = "loss",
    tolerance: float = TOLERANCE,
    rungs: Iterable[int] = (),
    probe_every: int = 10,
    rung_examples: int = 1000,
    precision: str = "float32",
    skip_unusable: bool = False,
    engine: str = "auto",
    workers: int | None = None,
    address: str | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Finding:
    """Find the learning rate for a problem, an optimizer and a horizon, by a race of trainings.

    Real trainings to the full horizon, paired by seed, most of them stopped long before: see
    docs/finding.md for how it decides. Killed at any moment, the same call goes on and ends with
    the same finding; called again with a larger budget, it goes on from what is trained.

    Args:
        problem: a Problem, or the name of one.
        steps, epochs: the horizon, as for `sweep`.
        budget: what may be spent at most, in trainings of the full horizon; 2 is the least that
            says something, 4 mostly finds the rate, 8 settles it, 12 the edge too.
        optimizer, schedule, clip, accumulate, weight_decay, probe_every, rung_examples, precision,
            skip_unusable: see `Plan`.
        lrs: the ladder to begin with; it is thinned out to half decades, filled up between, and
            extended where the best lies at its end.
        seed: the first seed; fresh ones count on from it.
        objective: `loss`, the held-out loss, or `metric`.
        tolerance: the share of (chance minus best) by which a rate may be worse and still count
            as good.
        rungs: steps at which trials are evaluated and saved too, beside those at which the race
            compares them: 1/32, 1/8, 1/4 and 1/2 of the horizon.
        engine, workers, address, out, progress: see `sweep`.

    Returns:
        The finding: `.lr`, `.band`, `.edge`, `.status`, `.reason`, `.cost` and the evidence. A
        problem that fails at every rate has one too: its `lr` is None, and its reason says why.

    Raises:
        UsageError, StudyError, KeyboardInterrupt: as `sweep` does.

    Example:
        >>> import tempfile, torch
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> line = Problem(
        ...     model=lambda: torch.nn.Linear(1, 1),
        ...     loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        ...     train=(x, 3 * x), valid=(x, 3 * x), batch_size=16,
        ... )
        >>> with tempfile.TemporaryDirectory() as out:
        ...     finding = find(line, steps=64, optimizer="sgd", out=out)
        >>> finding.band[0] <= finding.lr < finding.edge.lr, finding.cost <= finding.budget
        (True, True)
    """
    problem, further = _problem(problem), items(rungs) or ()
    plan = Plan(
        steps=_horizon(problem, steps, epochs, accumulate),
        optimizer=own_step if problem.owns_step else optimizer,
        schedule=schedule,
        clip=clip,
        accumulate=accumulate,
        weight_decay=weight_decay,
        rungs=further or rungs,  # type: ignore[arg-type]
        probe_every=probe_every,
        rung_examples=rung_examples,
        precision=precision,
        skip_unusable=skip_unusable,
    )
    rates = tuple(check_targets(lrs, plan.steps))
    ladder = ladder_of(rates)
    if objective not in ("loss", "metric"):
        raise UsageError(f"objective is {objective!r}; choose loss or metric")
    if objective == "metric" and problem.metric is None:
        raise UsageError("objective metric needs a problem with a metric; give it one, or use loss")
    budget, tolerance = positive("budget", budget), positive("tolerance", tolerance)
    (seed,) = check_seeds([seed])
    parts = check_parts(problem, plan.skip_unusable)
    problem = parts.problem
    stops, reach = stops_of(lr_course(problem, plan))
    call = Call.of(
        "find",
        plan,
        lrs=None if rates == LADDER else list(rates),
        epochs=epochs,
        rungs=plain_rungs(further, plan.steps),
        budget=budget,
        seed=seed,
        objective=objective,
        tolerance=tolerance,
        engine=engine,
        workers=workers,
        **_own(problem),
    )
    plan = replace(plan, rungs=(*stops, *further))
    directory = _directory(out, problem, plan, "find-")
    request = _Request(parts, engine, workers, address, directory, progress, call)
    trials = [TrialId(lr, seed) for lr in ladder]
    work = budget * plan.steps
    with _training(problem, plan, request, trials, work) as training:
        facts = training.study.problem
        rules = Rules(
            ladder=ladder,
            stops=stops,
            budget=budget,
            chance=chance_score(facts, objective),
            tolerance=tolerance,
            reach=reach,
            seed=seed,
            objective=objective,
            higher_is_better=facts.higher_is_better,
        )
        study = _race(training, rules, work)
    finding = study.finding
    assert finding is not None
    return finding


def _race(training: Training, rules: Rules, work: float) -> Study:
    """Train what the race asks for until it asks for nothing more."""
    training.aim(rules)
    # What was ended by code that may have been mended since is asked for again.
    tired = {h.trial for h in training.study.trials if h.failure and not h.failure.final}
    if training.study.concluded and not tired:
        return training.study
    while True:
        known = [h for h in training.study.trials if h.trial not in tired]
        _, asked = follow(rules, known, training.study.problem.chance)
        if asked is None:
            return training.conclude()
        training.train(asked.targets, work, asked.why)
        tired -= asked.targets.keys()


class _Request(NamedTuple):
    """What is asked of what, where and with what to train it: see `sweep`."""

    parts: Parts
    engine: str
    workers: int | None
    address: str | None
    directory: Path
    progress: Progress | None
    call: Call


@contextmanager
def _training(
    problem: Problem, plan: Plan, request: _Request, trials: Sequence[TrialId], steps: float
) -> Iterator[Training]:
    """Everything that may be wrong is found at this door; then there is a study to train for.

    Args:
        problem, plan, request: what is asked for.
        trials: those to begin with.
        steps: about how many there are to train in all.
    """
    parts, engine, workers, address, directory, progress, call = request
    if engine not in ENGINES:
        raise UsageError(f"no engine is called {engine!r}; choose from {', '.join(ENGINES)}")
    if workers is not None:
        workers = whole("workers", workers, least=1)
    owned = {"schedule": "constant", "clip": None, "accumulate": 1, "weight_decay": None}
    for name, plain in {**owned, "skip_unusable": False}.items():
        if problem.owns_step and getattr(plan, name) != plain:
            raise UsageError(f"{name} is for others: this problem owns its step, so set it there")
    if address is not None and engine != "ray":
        raise UsageError(f"address is of a Ray cluster, and engine is {engine!r}; use engine ray")
    with recruit(engine, problem, workers, len(trials), parts.step_seconds * steps) as crew:
        check_factories(problem, plan, max(trial.lr for trial in trials))
        # The smallest rate is the least likely to fail within the few steps that are timed. What
        # data keeps of earlier draws hides what it gives at first, so this comes early.
        cost = rehearse(problem, plan, min(trials))
        facts = gather_facts(problem, parts, plan.rung_examples)
        with Journal(directory) as journal:
            open_or_begin(journal, problem, plan, facts, call)
            means = Means(engine, crew, cost, workers, address)
            with Training(journal, problem, plan, means, progress or Silent()) as training:
                training.called(call)
                yield training


def _problem(problem: Problem | str) -> Problem:
    if isinstance(problem, str):
        return get_problem(problem)
    if not isinstance(problem, Problem):
        raise UsageError(f"problem is a {type(problem).__name__}; pass an etascope.Problem")
    return problem


def _horizon(problem: Problem, steps: int | None, epochs: int | None, accumulate: int) -> int:
    if (steps is None) == (epochs is None):
        raise UsageError("give the horizon as either steps or epochs")
    if steps is not None:
        return steps
    batches = problem.sources["train"].batches_per_epoch
    if batches is None:
        raise UsageError("train does not say how many batches an epoch has; give steps instead")
    passes, together = whole("epochs", epochs, least=1), whole("accumulate", accumulate, least=1)
    return max(1, passes * batches // together)


def _own(problem: Problem) -> dict[str, Any]:
    """What a call says of the optimizer where the problem owns its step: nothing."""
    return {"optimizer": Plan.optimizer} if problem.owns_step else {}


def _directory(
    out: str | os.PathLike[str] | None, problem: Problem, plan: Plan, prefix: str = ""
) -> Path:
    if out is not None:
        return check_out(out)
    optimizer = plan.describe()["optimizer"].rpartition(":")[2]
    name = f"{prefix}{problem.name}-{optimizer}-{plan.steps}"
    return Path("studies") / "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
