"""`sweep`: from what the user asks to a study on the disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from etascope.arguments import check_out, whole
from etascope.encoding import to_json
from etascope.engines.choice import recruit, rehearse
from etascope.environment import describe_environment
from etascope.errors import UsageError
from etascope.factories import check_factories, describe_factories
from etascope.journal import HEADER, Journal, read_header
from etascope.plan import ENGINES, Plan, check_seeds, check_targets
from etascope.problems.checks import check_parts, gather_facts
from etascope.problems.problem import Problem
from etascope.problems.registry import get_problem
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
    directory = check_out(_default_out(problem, plan) if out is None else out)
    parts = check_parts(problem)
    seconds = parts.step_seconds * sum(targets.values())
    with recruit(engine, problem, workers, len(targets), seconds) as crew:
        facts = gather_facts(problem, parts, plan.rung_examples)
        check_factories(problem, plan, max(t.lr for t in targets))
        # The smallest rate is the least likely to fail within the few steps that are timed.
        cost = rehearse(problem, plan, min(targets))
        with Journal(directory) as journal:
            _open(journal, problem, plan, facts)
            training = Training(journal, problem, plan, targets, progress or Silent())
            training.run(engine, crew, cost, workers=workers, address=address)
    study = open_study(directory)
    study.source = problem, plan
    return study


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
    described, made = to_json(plan.describe()), to_json(describe_factories(problem, plan))
    if not (directory / HEADER).exists():
        header = {"reference": problem.reference, "problem": asdict(facts), "plan": described}
        journal.write_header({**header, "factories": made, "environment": describe_environment()})
        return
    begun = read_header(directory)
    other = "; name another --out for this one, or repeat the command that began it"
    differences = _differences(begun["plan"], described)
    if differences:
        raise UsageError(f"{directory} holds a study with {differences}{other}")
    known = begun["problem"]
    if known["fingerprint"] != facts.fingerprint:
        raise UsageError(
            f"{directory} holds a study of another problem ({known['name']}): "
            f"the initial weights, the first batches or the first losses differ{other}"
        )
    for factory, ours in made.items():
        if begun.get("factories", {}).get(factory) != ours:
            raise UsageError(
                f"{directory} holds a study whose {factory} factory made something else: "
                f"{begun.get('factories', {}).get(factory)} instead of {ours}{other}"
            )
    judged_by = {
        "metric": facts.metric,
        "higher_is_better": facts.higher_is_better,
        "chance": facts.chance.source,
    }
    differences = _differences({**known, "chance": known["chance"]["source"]}, judged_by)
    if differences:
        raise UsageError(f"{directory} holds a study judged by {differences}{other}")


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    return ", ".join(
        f"{name} {before.get(name)} instead of {value}"
        for name, value in now.items()
        if before.get(name) != value
    )
