"""Smaller held-out batches than the user's: where they change nothing, and where they break.

A verdict on a small held-out set wants ten batches or more, whose spread it is judged by. Batches
of another size than the user's are other batches to a contrastive loss, to a network of a fixed
batch size or to a metric over the whole batch. So they are made only where loss and metric are
shown to be means over examples.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import nn

from etascope.errors import RAISED, UsageError
from etascope.problems.batches import Counted, IndexedSource
from etascope.randomness import generator, undisturbed

if TYPE_CHECKING:
    from etascope.problems.problem import Problem

TRIED = 3  # batches that are cut to see
ROUNDING = 1e-4  # relative: sums in another order differ by less, other losses by more
STIRRED = 0.1  # how far weights are moved, as a share of themselves and beside it


def is_mean_over_examples(problem: Problem, source: IndexedSource) -> bool:
    """Whether loss and metric of a held-out batch are the weighted means of those of its parts.

    A pure function of the problem: of the weights of seed 0, and of those weights moved at random,
    since equal outputs for all examples hide what a loss compares. Where anything raises or is not
    finite, nothing is shown.
    """
    with undisturbed(problem.torch_device):
        try:
            model = problem.make_model(0)
            cuts = list(islice(source.cuts(), TRIED))
            for _ in range(2):
                if not all(_agree(problem, model, whole, parts) for whole, parts in cuts):
                    return False
                _stir(model)
        except RAISED:  # whatever it is, the user's own batches are left as they are
            return False
    return True


def check_last_batches(problem: Problem, model: nn.Module) -> None:
    """Evaluate the last batch of each held-out set where it holds fewer examples than the others.

    Raises:
        UsageError: if the loss takes full batches and not the last one, as that of a network with
            a hidden state of a fixed batch size does.
    """
    for split, source in problem.sources.items():
        if split == "train" or not isinstance(source, IndexedSource):
            continue
        first, last = source.first_and_last(cut=problem.is_cut(split))
        if last.examples == first.examples:
            continue
        list(problem.scores(model, [first]))
        try:
            list(problem.scores(model, [last]))
        except RAISED as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise UsageError(
                f"the last batch of {split} holds {last.examples} examples and the others "
                f"{first.examples}, and on it the loss or the metric raised {text}; make the model "
                f"take any number, or pass {split} as a DataLoader with drop_last=True"
            ) from error


def _agree(problem: Problem, model: nn.Module, whole: Counted, parts: list[Counted]) -> bool:
    (one,) = problem.scores(model, [whole])
    several = list(problem.scores(model, parts))
    share = [score.examples / one.examples for score in several]
    pairs = [(one.loss, [score.loss for score in several])]
    if one.values is not None:
        means = [float(score.values.mean()) for score in several if score.values is not None]
        pairs.append((float(one.values.mean()), means))
    return all(_is_mean(value, share, values) for value, values in pairs)


def _is_mean(value: float, share: list[float], values: list[float]) -> bool:
    mean = sum(s * v for s, v in zip(share, values, strict=True))
    scale = sum(s * abs(v) for s, v in zip(share, values, strict=True))
    return math.isfinite(scale) and abs(mean - value) <= ROUNDING * scale


def _stir(model: nn.Module) -> None:
    """Move every weight at random, the same way each time."""
    draws = generator(0, "cut")
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float32, generator=draws)
            noise = STIRRED * noise.to(parameter.device, parameter.dtype)
            parameter.add_(noise + noise * parameter)
