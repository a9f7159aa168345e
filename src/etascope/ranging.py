"""`range_test`: the classic learning-rate range test, on copies and over seeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from etascope.arguments import positive, whole
from etascope.caller import left_as_it_was
from etascope.errors import UsageError
from etascope.factories import check_factories
from etascope.plan import Plan, check_seeds, logspace
from etascope.problems.checks import check_parts
from etascope.problems.problem import Problem
from etascope.problems.registry import get_problem
from etascope.records import TrialId
from etascope.rehearsal import rehearse
from etascope.search.range_test import RangeTest, read_range_test
from etascope.trial import Trial

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from etascope.plan import OptimizerFactory


@left_as_it_was()
def range_test(
    problem: Problem | str,
    *,
    optimizer: str | OptimizerFactory = "adam",
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    seeds: int | Iterable[int] = 3,
    clip: float | None = None,
    accumulate: int = 1,
    weight_decay: float | None = None,
    precision: str = "float32",
    skip_unusable: bool = False,
) -> RangeTest:
    """Run the learning-rate range test: one short training a seed, while the rate rises.

    The classic, kept honest: it works on copies, repeats over seeds, tells the spread, and says
    how far to trust it. It trains at none of the rates it suggests; `find` does.

    Args:
        problem: a Problem, or the name of one.
        optimizer, clip, accumulate, weight_decay, precision, skip_unusable: see `Plan`.
        low, high: the first and the last rate.
        steps: how many steps the rate takes from one to the other, at least 3.
        seeds: how many seeds, or which.

    Returns:
        The curves and the suggestions `steepest`, `valley` and `minimum` (a tenth of it).

    Raises:
        UsageError: if something passed cannot work.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> line = Problem(
        ...     model=lambda: torch.nn.Linear(1, 1),
        ...     loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        ...     train=(x, 3 * x), valid=(x, 3 * x), batch_size=16,
        ... )
        >>> 1e-4 < range_test(line, optimizer="sgd").valley.lr < 1
        True

    Source: Smith, "Cyclical learning rates for training neural networks", 2017.
    """
    if isinstance(problem, str):
        problem = get_problem(problem)
    if not isinstance(problem, Problem):
        raise UsageError(f"problem is a {type(problem).__name__}; pass an etascope.Problem")
    if problem.owns_step:
        raise UsageError("a problem that owns its step has no rate that could rise; use find")
    low, high = positive("low", low), positive("high", high)
    if low >= high:
        raise UsageError(f"the rate is to rise from {low:g} to {high:g}; give low below high")
    steps = whole("steps", steps, least=3)
    growth = (high / low) ** (1 / (steps - 1))

    def rising(optimizer: Optimizer, _: int) -> LRScheduler:
        from torch.optim.lr_scheduler import LambdaLR

        return LambdaLR(optimizer, lambda step: growth**step)

    plan = Plan(
        steps=steps,
        optimizer=optimizer,
        schedule=rising,
        clip=clip,
        accumulate=accumulate,
        weight_decay=weight_decay,
        rungs=(steps,),
        probe_every=steps,
        precision=precision,
        skip_unusable=skip_unusable,
    )
    chosen = check_seeds(seeds)
    problem = check_parts(problem, plan.skip_unusable).problem
    check_factories(problem, plan, low)
    rehearse(problem, plan, TrialId(low, min(chosen)))
    losses = []
    for seed in chosen:
        trial = Trial(problem, plan, TrialId(low, seed))
        burst = trial.advance(steps + 1, stopping=lambda t=trial: t.step >= steps)  # type: ignore[misc]
        if burst.failure is not None and burst.failure.cause != "non-finite":
            # Nothing may be read off a curve that ended for a reason that is not the rate.
            raise UsageError(
                f"the range test ended: {burst.failure.message}; {burst.failure.remedy}"
            )
        losses.append(burst.loss)
    return read_range_test(logspace(low, high, steps), losses)
