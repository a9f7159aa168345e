"""Whether a loss is the cross entropy of the model's outputs and labels in the batch, and of which.

Nothing is assumed of how a model is called or where it keeps what: the loss is computed once, the
model's output and the batch are searched for scores and labels, and what reproduces the value of
the loss is what it is made of. Language models that compute their own loss (`model(**batch)` with
`labels`) are understood like that, with or without a shift to the next token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits, log_softmax

from etascope.errors import RAISED
from etascope.problems.contents import Batch, tensors_of
from etascope.problems.problem import Problem, evaluating, replaced_forward
from etascope.randomness import generator

TOLERANCE = 1e-4  # of the loss: it may have been added up in another order
NUDGE = 0.1  # spread of what is added to the weights, so that no two labellings look alike
LEAST_SMOOTHING, MOST_SMOOTHING = 0.01, 0.5  # label smoothing is looked for in steps of 0.01
DEEPEST = 4  # levels of an output that are searched for scores


class Labelling(NamedTuple):
    """How a cross entropy reads its labels from a batch.

    Attributes:
        labels: the number of their tensor among those of the batch.
        classes: how many there are; 0 where each label is the probability of its own output.
        next_axis: the axis along which the first label is left out, since nothing comes before
            it; None where every label counts.
        ignored: a class that does not count, beside negative labels, which never do.
        smoothing: the share of each label that is spread over all classes.
        summed: whether the loss is the sum over an example's labels and not their mean.
    """

    labels: int
    classes: int
    next_axis: int | None = None
    ignored: int | None = None
    smoothing: float = 0.0
    summed: bool = False


class Constant(NamedTuple):
    """What the best constant prediction has on the held-out batches.

    `weight` says how much an example can count at most: `exp(-weight * examples * gain)` bounds
    the probability that a model which knows nothing of the labels is better by `gain` by luck.
    """

    loss: float
    batch_losses: tuple[float, ...]
    weight: float


def find_labelling(problem: Problem) -> Labelling | None:
    """How the loss reads its labels, if it is a cross entropy; checked on two held-out batches.

    It is looked for with weights that are moved a little, so that a model whose first outputs are
    all the same does not make every tensor look like the labels.
    """
    model = problem.make_model(0)
    draws = generator(0, "labelling")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=draws)
                parameter.add_(noise.to(parameter), alpha=NUDGE)
    common: list[Labelling] = []
    for number, counted in enumerate(islice(problem.counted("valid"), 2)):
        try:
            found = list(_labellings(problem, model, counted.batch, counted.examples or 0))
        except RAISED:  # weights of another kind than these were meant to be
            return None
        common = [labelling for labelling in found if not number or labelling in common]
    return common[0] if common else None


def best_constant(problem: Problem, labelling: Labelling) -> Constant:
    """The cross entropy of the best constant distribution over the held-out labels.

    With the shares `t_b` of the labels in batch b (smoothed where the loss smooths them) the best
    constant is `q = sum_b n_b t_b / sum_b n_b`, and its loss in batch b is `-sum_k t_bk log q_k`.
    """
    tables, sizes, counts = [], [], []
    for batch, examples in problem.counted("valid"):
        labels = list(tensors_of(batch))[labelling.labels].cpu()
        table, count = _shares(labels, labelling)
        tables.append(table)
        counts.append(count)
        sizes.append(examples or 0)
    table = torch.stack(tables)  # [batch, output, class], the sum over a batch's labels if summed
    if labelling.summed:
        table = table / torch.tensor(sizes, dtype=table.dtype)[:, None, None]
    weights = torch.tensor(sizes, dtype=table.dtype)
    whole = (table * weights[:, None, None]).sum(0)
    best = whole / whole.sum(1, keepdim=True)
    each = -torch.special.xlogy(table, best.clamp_min(1e-300)).sum(2)
    losses = tuple((each.sum(1) if labelling.summed else each.mean(1)).tolist())
    loss = math.fsum(x * n for x, n in zip(losses, sizes, strict=True)) / sum(sizes)
    return Constant(loss, losses, _weight(counts, sizes, labelling))


def _shares(labels: torch.Tensor, labelling: Labelling) -> tuple[torch.Tensor, torch.Tensor]:
    """[output, class] shares of the labels of a batch, their sums where the loss sums; and [row]
    how many labels count in each row of the batch."""
    if labelling.classes == 0:
        ones = labels.double().reshape(len(labels), -1)
        each = torch.stack([1 - ones, ones], 2)
        table = each.sum(0) if labelling.summed else each.mean(0)
        return table, torch.full((len(labels),), float(ones.shape[1]))
    kept = _kept(labels, labelling.next_axis)
    there = (kept >= 0) & (kept != (-1 if labelling.ignored is None else labelling.ignored))
    table = kept[there].bincount(minlength=labelling.classes).double()[None]
    total = float(table.sum())
    table = (1 - labelling.smoothing) * table + labelling.smoothing * total / labelling.classes
    if not labelling.summed:
        table = table / max(total, 1.0)
    return table, there.reshape(len(there), -1).sum(1).double()


def _weight(counts: Sequence[torch.Tensor], sizes: Sequence[int], labelling: Labelling) -> float:
    """One over the largest weight that a single example has in the loss of its batch.

    In a mean over all labels of a batch a longer example weighs more than another.
    """
    largest = 0.0
    for count, size in zip(counts, sizes, strict=True):
        if len(count) != size or not float(count.sum()):
            return 0.0
        weight = count.max() if labelling.summed else count.max() / count.mean()
        largest = max(largest, float(weight))
    return 1.0 / largest


def _labellings(
    problem: Problem, model: nn.Module, batch: Batch, examples: int
) -> Iterator[Labelling]:
    """Every labelling whose cross entropy is the loss of the batch."""
    outputs: list[Any] = []
    forward = model.forward

    def watch(*args: Any, **kwargs: Any) -> Any:
        outputs.append(forward(*args, **kwargs))
        return outputs[-1]

    with evaluating(model), replaced_forward(model, watch):
        loss = float(problem.loss(model, batch))
    if len(outputs) != 1 or not math.isfinite(loss):
        return
    scores = [t.float() for t in _tensors_in(outputs[0]) if t.is_floating_point() and t.ndim]
    for number, labels in enumerate(tensors_of(batch)):
        if not labels.ndim or not labels.numel() or labels.is_complex():
            continue
        for score in scores:
            if not labels.is_floating_point():
                yield from _by_classes(number, labels, score, loss, examples)
            yield from _by_outputs(number, labels, score, loss, examples)


def _by_classes(
    number: int, labels: torch.Tensor, scores: torch.Tensor, loss: float, examples: int
) -> Iterator[Labelling]:
    """The labellings in which each label is one of the classes on an axis of the scores."""
    labels = labels.long()
    axes = [None] if labels.ndim == 1 else [None, labels.ndim - 1, 0]
    for layout in dict.fromkeys((scores.ndim - 1, 1 if scores.ndim > 1 else 0)):
        classes = scores.shape[layout]
        if classes < 2 or int(labels.max()) >= classes or not _one_negative(labels):
            continue
        moved = scores.movedim(layout, -1)
        for axis in axes:
            rows, kept = _aligned(moved, labels, axis), _kept(labels, axis).flatten()
            if rows is None:
                continue
            logs = rows.log() if _probabilities(rows) else log_softmax(rows, 1)
            for ignored in (None, *(c for c in (0, 1, classes - 1) if bool((kept == c).any()))):
                there = kept >= 0 if ignored is None else (kept >= 0) & (kept != ignored)
                if not bool(there.any()):
                    continue
                right = -logs[there].gather(1, kept[there][:, None]).sum()
                spread = -logs[there].mean(1).sum()
                for summed, count in ((False, int(there.sum())), (True, examples)):
                    smoothing = _smoothing(loss, float(right) / count, float(spread) / count)
                    if smoothing is not None:
                        yield Labelling(number, classes, axis, ignored, smoothing, summed)


def _by_outputs(
    number: int, labels: torch.Tensor, scores: torch.Tensor, loss: float, examples: int
) -> Iterator[Labelling]:
    """The labellings in which each label is the probability of one output."""
    given = labels.float()
    if scores.numel() != given.numel() or len(scores) != len(given):
        return
    if not bool(((given >= 0) & (given <= 1)).all()):
        return
    scores, given = scores.flatten(), given.flatten()
    found = [binary_cross_entropy_with_logits(scores, given, reduction="sum")]
    if bool(((scores >= 0) & (scores <= 1)).all()):
        found.append(binary_cross_entropy(scores, given, reduction="sum"))
    for summed, count in ((False, given.numel()), (True, examples)):
        if any(_same(float(total) / count, loss) for total in found):
            yield Labelling(number, 0, summed=summed)


def _smoothing(loss: float, right: float, spread: float) -> float | None:
    """The label smoothing with which `right`, smoothed towards `spread`, is the loss; or None."""
    if _same(right, loss):
        return 0.0
    share = (loss - right) / (spread - right) if spread != right else 0.0
    rounded = round(share, 2)
    if not LEAST_SMOOTHING <= rounded <= MOST_SMOOTHING:
        return None
    return rounded if _same((1 - rounded) * right + rounded * spread, loss) else None


def _probabilities(rows: torch.Tensor) -> bool:
    """Whether every row adds up to 1 and holds no negative value."""
    total = rows.sum(1)
    return bool((rows >= 0).all()) and torch.allclose(total, torch.ones_like(total), atol=1e-4)


def _same(value: float, loss: float) -> bool:
    return math.isclose(value, loss, rel_tol=TOLERANCE, abs_tol=1e-7)


def _one_negative(labels: torch.Tensor) -> bool:
    """Whether the labels have one negative value at most: that of what does not count."""
    return len(set(labels[labels < 0].tolist())) <= 1


def _kept(labels: torch.Tensor, axis: int | None) -> torch.Tensor:
    return labels if axis is None else labels.narrow(axis, 1, labels.shape[axis] - 1)


def _aligned(scores: torch.Tensor, labels: torch.Tensor, axis: int | None) -> torch.Tensor | None:
    """[label, class] the scores for the labels that are kept; None where they do not fit."""
    kept = _kept(labels, axis)
    places = scores.shape[:-1]
    if kept.numel() and places.numel() == kept.numel():
        return scores.reshape(-1, scores.shape[-1])
    if axis is not None and kept.numel() and places == labels.shape:
        return scores.narrow(axis, 0, labels.shape[axis] - 1).reshape(-1, scores.shape[-1])
    return None


def _tensors_in(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """Every tensor of a model's output: in mappings, sequences and the attributes of objects."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth < DEEPEST and isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item, depth + 1)
    elif depth < DEEPEST and isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _tensors_in(item, depth + 1)
    elif depth < DEEPEST and hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        for item in vars(value).values():
            yield from _tensors_in(item, depth + 1)
