"""The plain sweep: every rate with every seed, each to the step it was asked to reach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from etascope.records import History, TrialId


def targets_of(targets: Mapping[float, int], seeds: Iterable[int]) -> dict[TrialId, int]:
    """The trials of a sweep and the step each is to reach, all rates of a seed together.

    >>> list(targets_of({0.1: 50, 0.01: 100}, [0]).values())
    [50, 100]
    """
    return {TrialId(lr, seed): step for seed in seeds for lr, step in targets.items()}


def remaining(targets: Mapping[TrialId, int], histories: Iterable[History]) -> dict[TrialId, int]:
    """The part of `targets` that is still to be trained.

    A trial whose failure is final is done; one that failed otherwise is tried again.
    """
    reached = {h.trial: h.resume_step for h in histories}
    return {
        trial: target
        for trial, target in targets.items()
        if (step := reached.get(trial, 0)) is not None and step < target
    }
