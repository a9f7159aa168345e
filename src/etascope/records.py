"""The typed records that every part of etascope passes on: what was trained and what came of it.

A record is a frozen value. Engines make `Burst`s, the journal keeps them, `merge` joins the bursts
of one trial to its `History`, and everything that is decided or drawn is a function of histories.

Step numbers count finished optimizer updates: a loss with index `t` (from 0) was measured on the
weights after `t` updates, by the forward pass that leads to update `t + 1`; an evaluation at step
`t` was made after update `t`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

Split = Literal["valid", "test"]
Status = Literal["pending", "paused", "finished", "failed"]
VerdictName = Literal["diverged", "stuck", "too slow", "good", "best", "undecided"]
RETRYABLE = ("exception", "worker")  # causes of failure that another run may not meet again
Number = float | int | str | None


@dataclass(frozen=True, order=True, slots=True)
class TrialId:
    """Which training of a study: its learning rate and its seed."""

    lr: float
    seed: int

    def __str__(self) -> str:
        return f"lr {self.lr:g}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The model without dropout on held-out examples, after `step` updates.

    `loss` is the mean over `examples` examples and `batch_losses` its parts, batch by batch in a
    fixed order, so that two evaluations can be compared pair by pair. `metric` is the mean metric;
    `correct` counts the examples whose metric is 1 where every value is 0 or 1, else None.
    """

    step: int
    split: Split
    loss: float
    metric: float | None
    examples: int
    correct: int | None
    batch_losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Chance:
    """What knowing nothing gives on the held-out set.

    `loss` is the mean loss of the best constant prediction (or what the user said, or the loss of
    the untrained model: `source` tells) and `batch_losses` its parts, batch by batch in the order
    of an `Evaluation`, empty where only the mean is known. `majority` maps a number of held-out
    examples (counted from the first) to the share of the most common class among them; it is
    empty where the targets are no class labels.
    """

    loss: float
    source: Literal["given", "constant prediction", "initial loss"]
    batch_losses: tuple[float, ...] = ()
    majority: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ProblemFacts:
    """What is known of a problem before any training."""

    name: str
    fingerprint: str
    parameters: int
    batch_shapes: tuple[tuple[int, ...], ...]
    metric: str | None
    higher_is_better: bool
    device: str
    chance: Chance


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a trial ended early: a value, never an exception.

    `step` is the number of finished updates when it was noticed, `layer` the first module in
    forward order whose weights or output were not finite (None where it cannot be named). Of the
    causes only "non-finite" tells of the rate: an "exception" is the user's code, "data" a batch
    that held a non-finite value, "worker" a trial that killed its worker three times.
    """

    step: int
    cause: Literal["non-finite", "exception", "data", "worker"]
    layer: str | None
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Burst:
    """What one stretch of training gave: the steps from `start` up to, not including, `stop`.

    `loss[i]` is the training loss of step `start + i`. `probe_metric[j]` is the metric on the
    training batch of step `probe_steps[j]`, without dropout, before that step's update.
    """

    trial: TrialId
    start: int
    stop: int
    loss: tuple[float, ...]
    probe_steps: tuple[int, ...]
    probe_metric: tuple[float, ...]
    evaluations: tuple[Evaluation, ...]
    failure: Failure | None
    seconds: float


@dataclass(frozen=True)
class History:
    """All records of one trial, joined; `target` is the step it was asked to reach."""

    trial: TrialId
    target: int
    loss: np.ndarray  # [step] float64
    probe_steps: np.ndarray  # [probe] int64
    probe_metric: np.ndarray  # [probe] float64
    evaluations: tuple[Evaluation, ...]
    failure: Failure | None
    seconds: float

    @property
    def step(self) -> int:
        """Finished updates."""
        return len(self.loss) if self.failure is None else self.failure.step

    @property
    def status(self) -> Status:
        """`failed` once it failed, `finished` at its target, else `paused` or `pending`."""
        if self.failure is not None:
            return "failed"
        if self.step >= self.target:
            return "finished"
        return "paused" if self.step else "pending"

    @cached_property
    def peak(self) -> tuple[int, float] | None:
        """The step and value of the largest finite training loss; None before the first one."""
        finite = np.isfinite(self.loss)
        if not finite.any():
            return None
        step = int(np.argmax(np.where(finite, self.loss, -math.inf)))
        return step, float(self.loss[step])

    def evaluation(self, split: Split, step: int | None = None) -> Evaluation | None:
        """The evaluation of `split` at `step`, by default the last one; None if there is none."""
        found = [e for e in self.evaluations if e.split == split and step in (None, e.step)]
        return max(found, key=lambda e: (e.step, e.examples), default=None)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a trial or a rate, as of `step`, and the numbers it rests on.

    `provisional` is true before the horizon: further training may change the verdict.
    """

    name: VerdictName
    step: int
    provisional: bool
    reason: str
    evidence: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdicts of a study; `band` spans the best rate and its neighbours that are as good."""

    rates: Mapping[float, Verdict]
    trials: Mapping[TrialId, Verdict]
    best: float | None
    band: tuple[float, float] | None


def merge(trial: TrialId, target: int, bursts: Iterable[Burst]) -> History:
    """Join the bursts of one trial, in order; raises ValueError where they do not follow on."""
    loss: list[float] = []
    probe_steps: list[int] = []
    probe_metric: list[float] = []
    evaluations: list[Evaluation] = []
    failure: Failure | None = None
    seconds = 0.0
    for burst in bursts:
        if burst.trial != trial or burst.start != len(loss) or failure is not None:
            raise ValueError(f"the records of {trial} do not follow on at step {burst.start}")
        loss.extend(burst.loss)
        probe_steps.extend(burst.probe_steps)
        probe_metric.extend(burst.probe_metric)
        evaluations.extend(burst.evaluations)
        failure = burst.failure
        seconds += burst.seconds
    return History(
        trial=trial,
        target=target,
        loss=np.array(loss, dtype=np.float64),
        probe_steps=np.array(probe_steps, dtype=np.int64),
        probe_metric=np.array(probe_metric, dtype=np.float64),
        evaluations=tuple(evaluations),
        failure=failure,
        seconds=seconds,
    )
