"""How much it costs to miss the best learning rate."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from etascope.diagnosis.statistics import scale_of, scaled


def sensitivity(losses: Mapping[float, float], chance: float, low: float, high: float) -> float:
    """The loss that a rate drawn at random between `low` and `high` is expected to lose.

    `E[min(L(η), L0) - L*]`, with log η uniform between the two rates, L0 the loss of knowing
    nothing and L* the lowest loss; L is joined by straight lines in log rate.

    Args:
        losses: the final held-out loss of each rate, infinite where it failed.
        chance: L0.
        low, high: the range; where it reaches beyond the rates, the outermost ones stand for it.

    Returns:
        In units of the loss; 0 where every rate of the range is as good as the best.

    Raises:
        ValueError: if there is no rate, or the range is empty.

    Example:
        >>> sensitivity({0.01: 1.0, 0.1: 0.0, 1.0: 1.0}, 1.0, 0.01, 1.0)
        0.5

    Source: Wortsman et al., "Small-scale proxies for large-scale Transformer training
    instabilities", 2023, section 2, where L0 is the loss at the start.
    """
    if not losses or low >= high:
        raise ValueError("sensitivity needs rates, and a range between two of them")
    lrs = np.array(sorted(losses))
    capped = np.array(
        [min(losses[lr], chance) if losses[lr] == losses[lr] else chance for lr in lrs]
    )
    power = scale_of([*capped.tolist(), chance])
    capped = np.ldexp(capped, -power)
    ends = np.log([low, high])
    inside = np.log(lrs[(lrs > low) & (lrs < high)])
    grid = np.concatenate([ends[:1], inside, ends[1:]])
    values = np.interp(grid, np.log(lrs), capped)
    excess = values - capped.min()
    lost = float(np.sum((excess[1:] + excess[:-1]) / 2 * np.diff(grid)) / (ends[1] - ends[0]))
    return scaled(lost, power)
