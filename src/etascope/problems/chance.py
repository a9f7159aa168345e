"""What knowing nothing gives: the best constant prediction under the problem's own loss.

The model's forward is replaced by one that returns the same output for every example, and that
output is fitted to the held-out set, so that any loss and any way of calling the model will do.
Without classes or targets to be seen, nothing needs to be assumed about them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from etascope.errors import RAISED, UsageError
from etascope.problems.contents import Batch, tensors_of
from etascope.problems.problem import Problem, evaluating, replaced_forward
from etascope.problems.tensors import is_finite
from etascope.records import Chance, Evaluation

SMOOTH = 1e-12  # the share given to a class that never occurs, so that its log is finite
FITTED = 2000  # held-out examples that the constant is fitted to
CLASSES = 64  # up to so many outputs, each is tried as the one class that is always named


class _Output(NamedTuple):
    """What the model returns: shape and kind of one row, and rows an example of its input.

    `ratio` is None where the first axis of the input counts something else than examples, such as
    nodes or time steps.
    """

    row: torch.Tensor
    ratio: float | None


def find_chance(problem: Problem, model: nn.Module, batch: Batch, rung_examples: int) -> Chance:
    """The held-out loss of knowing nothing, and the hits of always naming the best class.

    Args:
        problem: the problem.
        model: a new model of its own; its weights are left alone.
        batch: a held-out batch.
        rung_examples: how many held-out examples rungs use.

    Raises:
        UsageError: if valid holds a value that is not finite, or the untrained model's loss is not.
    """
    targets = _targets(problem)
    output = _probe(problem, model, batch)
    constants = [] if output is None else _constants(problem, model, output, targets)
    majority: tuple[tuple[int, float], ...] = ()
    found: list[Evaluation] = []
    if output is not None:
        found = _evaluated(problem, model, output, constants, None)
        if problem.higher_is_better and any(e.correct is not None for e in found):
            majority = _majority(problem, model, output, constants, rung_examples)
    if problem.chance is not None:
        return Chance(float(problem.chance), "given", majority=majority)
    if found:
        best = min(found, key=lambda e: e.loss)
        return Chance(best.loss, "constant prediction", best.batch_losses, majority)
    initial = problem.evaluate(model, "valid", 0)
    if not math.isfinite(initial.loss):
        raise UsageError("the held-out loss of the untrained model is not finite; check valid")
    return Chance(initial.loss, "initial loss", initial.batch_losses, majority)


@contextmanager
def _always(model: nn.Module, constant: torch.Tensor, output: _Output) -> Iterator[None]:
    """Have the model return `constant` for every row of its output."""

    plainly = model.forward

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        if output.ratio is None:
            with torch.no_grad():
                rows = len(plainly(*args, **kwargs))
        else:
            rows = round(output.ratio * len(next(tensors_of((args, kwargs)))))
        return constant.expand(rows, *constant.shape)

    with replaced_forward(model, forward):
        yield


def _targets(problem: Problem) -> torch.Tensor | None:
    """All held-out targets on the CPU, where batches are (inputs, targets); None otherwise."""
    targets: list[torch.Tensor] | None = []
    for number, batch in enumerate(problem.held_out("valid")):
        if not all(is_finite(tensor) for tensor in tensors_of(batch)):
            raise UsageError(f"valid holds a value that is not finite, in batch {number}")
        if targets is not None:
            targets = [*targets, batch[1].cpu()] if _is_pair(batch) else None
    try:
        return torch.cat(targets) if targets else None
    except RuntimeError:  # targets of several shapes
        return None


def _is_pair(batch: Batch) -> bool:
    return (
        isinstance(batch, (tuple, list))
        and len(batch) == 2
        and all(isinstance(part, torch.Tensor) and part.ndim for part in batch)
        and len(batch[0]) == len(batch[1])
    )


def _probe(problem: Problem, model: nn.Module, batch: Batch) -> _Output | None:
    """What the model returns when the loss calls it; None if that is not one floating tensor."""
    seen: list[_Output | None] = []
    forward, examples = model.forward, next(problem.counted("valid")).examples

    def watch(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        first = next(tensors_of((args, kwargs)), None)
        rows = isinstance(output, torch.Tensor) and output.is_floating_point() and output.ndim
        if rows and first is not None and first.ndim:
            ratio = len(output) / len(first) if len(first) == examples else None
            seen.append(_Output(output[0].detach(), ratio))
        else:
            seen.append(None)
        return output

    with evaluating(model), replaced_forward(model, watch):
        problem.loss(model, batch)
    return seen[0] if len(seen) == 1 else None


def _constants(
    problem: Problem, model: nn.Module, output: _Output, targets: torch.Tensor | None
) -> list[torch.Tensor]:
    """Constant outputs among which the best one is looked for: guesses, and each of them fitted."""
    guesses = [torch.zeros_like(output.row)]
    if targets is not None:
        guesses += _from_targets(targets, output.row)
    elif output.row.ndim == 1 and 2 <= len(output.row) <= CLASSES:
        guesses += list(torch.eye(len(output.row)).to(output.row))
    # The objective is convex in the output for the usual losses: one fit of the best guess will do.
    best = min(
        _scored(problem, model, output, guesses),
        key=lambda scored: scored[0],
        default=(math.inf, guesses[0]),
    )[1]
    fitted = _fitted(problem, model, output, best)
    if fitted is None:
        return guesses
    beyond = best + 2 * (fitted - best)
    scores = [loss for loss, _ in _scored(problem, model, output, [best, fitted, beyond])]
    # Where going on in the same direction goes on paying, no constant is best: the loss has no
    # minimum over constants, or the model's output is the loss itself.
    if len(scores) < 3 or scores[2] < scores[1] - 0.01 * abs(scores[0] - scores[1]):
        return []
    return [*guesses, fitted]


def _from_targets(targets: torch.Tensor, row: torch.Tensor) -> list[torch.Tensor]:
    """Log class shares, classes last; or the targets' mean and median."""
    if targets.is_floating_point():
        same = row.shape == targets.shape[1:]
        return [targets.mean(0).to(row), targets.median(0).values.to(row)] if same else []
    classes = row.shape[-1] if row.ndim else 0
    fits = row.shape[:-1] == targets.shape[1:] and row.ndim == targets.ndim
    if not fits or int(targets.min()) < 0 or int(targets.max()) >= classes:
        return []
    shares = targets.long().flatten().bincount(minlength=classes) / targets.numel()
    return [shares.clamp_min(SMOOTH).log().to(row).expand(row.shape)]


def _scored(
    problem: Problem, model: nn.Module, output: _Output, constants: list[torch.Tensor]
) -> list[tuple[float, torch.Tensor]]:
    evaluations = _evaluated(problem, model, output, constants, FITTED)
    if len(evaluations) != len(constants):
        return []
    return [(e.loss, c) for e, c in zip(evaluations, constants, strict=True)]


def _evaluated(
    problem: Problem,
    model: nn.Module,
    output: _Output,
    constants: list[torch.Tensor],
    examples: int | None,
) -> list[Evaluation]:
    """The evaluations of constant outputs; those with a finite loss."""
    found = []
    for constant in constants:
        try:
            with _always(model, constant, output):
                found.append(problem.evaluate(model, "valid", 0, examples))
        except RAISED:  # such a loss looks inside the model
            return []
    return [e for e in found if math.isfinite(e.loss)]


def _fitted(
    problem: Problem, model: nn.Module, output: _Output, start: torch.Tensor
) -> torch.Tensor | None:
    """The constant that minimises the loss on the first held-out examples, by L-BFGS.

    `start` is moved along each of its axes alone, so that the classes of tokens or pixels are
    fitted and not every position, which would learn the held-out set by heart.
    """
    batches, sizes = zip(*problem.counted("valid", FITTED), strict=True)
    axes = range(start.ndim) or [None]
    offsets = [
        start.new_zeros([n if a == axis else 1 for a, n in enumerate(start.shape)]).requires_grad_()
        for axis in axes
    ]
    optimizer = torch.optim.LBFGS(offsets, max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        with _always(model, sum(offsets, start), output):
            losses = [
                problem.loss(model, batch) * (size / sum(sizes))
                for batch, size in zip(batches, sizes, strict=True)
            ]
        total = torch.stack(losses).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    model.eval()
    try:
        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
    except RAISED:  # such a loss looks inside the model
        return None
    return sum(offsets, start).detach()


def _majority(
    problem: Problem,
    model: nn.Module,
    output: _Output,
    constants: list[torch.Tensor],
    rung_examples: int,
) -> tuple[tuple[int, float], ...]:
    """The best share of hits that a constant output has, on a rung's examples and on all."""
    shares: dict[int, float] = {}
    for limit in (rung_examples, None):
        for e in _evaluated(problem, model, output, constants, limit):
            if e.correct is not None:
                shares[e.examples] = max(shares.get(e.examples, 0.0), e.correct / e.examples)
    return tuple(sorted(shares.items()))
