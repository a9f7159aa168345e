"""What knowing nothing gives: the best constant prediction under the problem's own loss.

The model's forward is replaced by one that returns the same output for every example, and that
output is fitted to the held-out set, so that any loss and any way of calling the model will do.
Without classes or targets to be seen, nothing needs to be assumed about them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn

from etascope.errors import RAISED, UsageError
from etascope.problems.contents import Batch, tensors_of
from etascope.problems.likelihood import Labelling, best_constant, find_labelling
from etascope.problems.problem import Problem, evaluating, replaced_forward
from etascope.randomness import seed_everything
from etascope.records import Chance, Evaluation
from etascope.tensors import is_finite

SMOOTH = 1e-12  # the share given to a class that never occurs, so that its log is finite
FITTED = 2000  # held-out examples that the constant is fitted to
SAME = 1e-6  # of a loss: two ways to add it up
TRAINING_BATCHES = 10  # from which the loss of knowing nothing in training is worked out
CLASSES = 64  # up to so many outputs, each is tried as the one class that is always named


class _Output(NamedTuple):
    """What the model returns: shape and kind of one row, and rows an example of its input.

    `ratio` is None where the first axis of the input counts something else than examples, such as
    nodes or time steps.
    """

    row: torch.Tensor
    ratio: float | None


class _Best(NamedTuple):
    """The best constant prediction: its losses, and what was tried to find it.

    `weight` is that of `likelihood.Constant`, 0 where the loss is no likelihood.
    """

    loss: float
    batch_losses: tuple[float, ...]
    weight: float


def find_chance(problem: Problem, model: nn.Module, batch: Batch, rung_examples: int) -> Chance:
    """The held-out loss of knowing nothing, and the metric of the constant that is best by it.

    Args:
        problem: the problem.
        model: a new model of its own; its weights are left alone.
        batch: a held-out batch.
        rung_examples: how many held-out examples rungs use.

    Raises:
        UsageError: if valid holds a value that is not finite, or the untrained model's loss is not.
    """
    targets = _targets(problem)
    output, constants = _tried(problem, model, batch, targets)
    labelling = None if problem.owns_step else find_labelling(problem)
    best = _best(problem, model, output, constants, labelling)
    metrics = {} if output is None else _metrics(problem, model, output, constants, rung_examples)
    hits = {n: e for n, e in metrics.items() if e.correct is not None}
    known = Chance(
        loss=0.0,
        source="given",
        majority=_majority(hits) if problem.higher_is_better else (),
        metrics=tuple((n, e.metric) for n, e in sorted(metrics.items()) if e.metric is not None),
        batch_metrics=metrics[max(metrics)].batch_metrics if metrics else (),
        train_losses=_training_losses(problem, labelling, constant=best is not None),
    )
    if problem.chance is not None:
        return replace(known, loss=float(problem.chance))
    if best is not None:
        return replace(
            known,
            loss=best.loss,
            source="constant prediction",
            batch_losses=best.batch_losses,
            likelihood=best.weight,
        )
    initial = problem.evaluate(model, "valid", 0)
    if not math.isfinite(initial.loss):
        losses = enumerate(initial.batch_losses)
        bad = [number for number, loss in losses if not math.isfinite(loss)]
        raise UsageError(
            f"the held-out loss of the untrained model is not finite on {len(bad)} of "
            f"{len(initial.batch_losses)} batches, the first one being batch {bad[0]}; check valid "
            "and the loss, or pass skip_unusable=True to leave such batches out"
        )
    return replace(
        known, loss=initial.loss, source="initial loss", batch_losses=initial.batch_losses
    )


def _tried(
    problem: Problem, model: nn.Module, batch: Batch, targets: torch.Tensor | None
) -> tuple[_Output | None, list[torch.Tensor]]:
    """What the model returns, and the constants among which the best one is."""
    output = _probe(problem, model, batch)
    return output, [] if output is None else _constants(problem, model, output, targets)


def _best(
    problem: Problem,
    model: nn.Module,
    output: _Output | None,
    constants: list[torch.Tensor],
    labelling: Labelling | None,
) -> _Best | None:
    """The lowest loss of a constant output, or of a constant distribution over the labels."""
    found: list[_Best] = []
    weight = 0.0
    if labelling is not None:
        loss, losses, weight = best_constant(problem, labelling)
        found.append(_Best(loss * (1 + SAME), losses, weight))
    if output is not None:
        tried = _evaluated(problem, model, output, constants, None)
        found += [_Best(e.loss, e.batch_losses, weight) for e in tried]
    return min(found, key=lambda best: best.loss, default=None)


def _training_losses(
    problem: Problem, labelling: Labelling | None, *, constant: bool
) -> tuple[float, ...]:
    """The losses of the first training batches under what stands for knowing nothing.

    That is the constant that is best for these batches, whose labels may be distributed otherwise
    than the held-out ones, or the untrained network, in training mode. A problem that owns its
    step has a loss in training that need not be that of its evaluation: nothing is known of it.
    """
    if problem.owns_step:
        return ()
    try:
        seed_everything(problem.torch_device, 0, "batch")
        batches = list(islice(problem.batches(0, 0), TRAINING_BATCHES))
        model = problem.make_model(0)
        if not constant:
            with torch.enable_grad():
                losses = [float(problem.loss(model, batch).detach()) for batch in batches]
            return tuple(losses) if all(map(math.isfinite, losses)) else ()
        sample = replace(
            problem,
            valid=lambda seed, epoch: batches,
            test=None,
            chance=None,
            examples=problem.count_training,
        )
        if labelling is not None:
            return best_constant(sample, labelling).batch_losses
        output, constants = _tried(sample, model, batches[0], _targets(sample))
        best = _best(sample, model, output, constants, None)
    except RAISED:  # what is wrong with training data is not told here
        return ()
    return () if best is None else best.batch_losses


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


def _metrics(
    problem: Problem,
    model: nn.Module,
    output: _Output,
    constants: list[torch.Tensor],
    rung_examples: int,
) -> dict[int, Evaluation]:
    """The best metric that a constant output has, on a rung's examples and on all."""
    best: dict[int, Evaluation] = {}
    sign = 1.0 if problem.higher_is_better else -1.0
    for limit in (rung_examples, None):
        for e in _evaluated(problem, model, output, constants, limit):
            if e.metric is None or not math.isfinite(e.metric):
                continue
            before = best.get(e.examples)
            if before is None or before.metric is None or sign * (e.metric - before.metric) > 0:
                best[e.examples] = e
    return best


def _majority(hits: Mapping[int, Evaluation]) -> tuple[tuple[int, float], ...]:
    """The best share of hits that a constant output has, for each number of examples."""
    return tuple((n, e.correct / n) for n, e in sorted(hits.items()) if e.correct is not None)
