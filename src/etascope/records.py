"""The typed records that every part of etascope passes on: what was trained and what came of it.

A record is a frozen value. Engines make `Burst`s, the journal keeps them, `merge` joins the bursts
of one trial to its `History`, and everything that is decided or drawn is a function of histories.

Step numbers count finished optimizer updates: a loss with index `t` (from 0) was measured on the
weights after `t` updates, by the forward pass that leads to update `t + 1`; an evaluation at step
`t` was made after update `t`.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from etascope.schema import Count, Natural

Split = Literal["valid", "test"]
Status = Literal["pending", "paused", "finished", "failed"]
VerdictName = Literal["diverged", "stuck", "too slow", "good", "best", "undecided"]
Number = float | int | str | None
Numbers = Sequence[float] | np.ndarray


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
    `correct` counts the examples whose metric is 1 where every value is 0 or 1, else None. Of any
    other metric `batch_metrics` holds the mean of each batch, in the order of `batch_losses`.
    """

    step: Natural
    split: Split
    loss: float
    metric: float | None
    examples: Count
    correct: Natural | None
    batch_losses: tuple[float, ...]
    batch_metrics: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Chance:
    """What knowing nothing gives on the held-out set.

    `loss` is the mean loss of the best constant prediction (or what the user said, or the loss of
    the untrained model: `source` tells) and `batch_losses` its parts, batch by batch in the order
    of an `Evaluation`, empty where only the mean is known. `majority` maps a number of held-out
    examples (counted from the first) to the share of the most common class among them; it is
    empty where the targets are no class labels.

    `metrics` maps a number of held-out examples to the metric of the constant prediction that is
    best by the metric, in the metric's own sign, and `batch_metrics` holds its parts where the
    metric is not 0 or 1 for each example. Both are empty where no constant could be evaluated.

    `train_losses` are the losses, one a batch, that the constant prediction best for them has on
    the first training batches; empty where none is known. `likelihood` is above 0 where the loss
    is the mean negative log-likelihood, in nats, that the model gives to labels: one over the
    largest weight of an example in that mean, so 1 where all examples weigh the same.
    """

    loss: float
    source: Literal["given", "constant prediction", "initial loss"]
    batch_losses: tuple[float, ...] = ()
    majority: tuple[tuple[Natural, float], ...] = ()
    metrics: tuple[tuple[Natural, float], ...] = ()
    batch_metrics: tuple[float, ...] = ()
    train_losses: tuple[float, ...] = ()
    likelihood: float = 0.0


@dataclass(frozen=True, slots=True)
class ProblemFacts:
    """What is known of a problem before any training."""

    name: str
    fingerprint: str
    parameters: Natural
    batch_shapes: tuple[tuple[Natural, ...], ...]
    metric: str | None
    higher_is_better: bool
    device: str
    chance: Chance


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a trial ended early: a value, never an exception.

    `step` is the number of finished updates when it was noticed, `layer` the first module in
    forward order whose weights or output were not finite (None where it cannot be named). Of the
    causes only `non-finite` tells of the rate: an `exception` is the user's code, `data` a batch
    whose loss or gradient is not finite at the untrained weights either, `worker` a trial that
    killed its worker three times.
    """

    step: Natural
    cause: Literal["non-finite", "exception", "data", "worker"]
    layer: str | None
    message: str
    remedy: str

    @property
    def final(self) -> bool:
        """Whether the same training would fail in the same way again.

        It follows from the numbers then; code that raised can be mended, and a machine that was
        short of memory may have it the next time.
        """
        return self.cause in ("non-finite", "data")


@dataclass(frozen=True, slots=True)
class Burst:
    """What one stretch of training gave: the steps from `start` up to, not including, `stop`.

    `loss[i]` is the training loss of step `start + i`. `probe_metric[j]` is the metric on the
    training batch of step `probe_steps[j]`, without dropout, before that step's update. The three
    are tuples where an engine made them, and arrays where they were read from a study. `skipped`
    counts the training batches that could not be used and were passed over.
    """

    trial: TrialId
    start: int
    stop: int
    loss: Numbers
    probe_steps: Sequence[int]
    probe_metric: Numbers
    evaluations: tuple[Evaluation, ...]
    failure: Failure | None
    seconds: float
    skipped: int = 0


@dataclass(frozen=True)
class History:
    """All records of one trial, joined; `target` is the step it was asked to reach.

    `burst_start` is the step at which its last burst began; `seconds` counts what was trained and
    dropped for a retry, too. `skipped` counts the batches that could not be used.
    """

    trial: TrialId
    target: int
    loss: np.ndarray  # [step] float64
    probe_steps: np.ndarray  # [probe] int64
    probe_metric: np.ndarray  # [probe] float64
    evaluations: tuple[Evaluation, ...]
    failure: Failure | None
    seconds: float
    burst_start: int = 0
    skipped: int = 0

    @property
    def step(self) -> int:
        """Finished updates."""
        return len(self.loss) if self.failure is None else self.failure.step

    @property
    def resume_step(self) -> int | None:
        """The step from which training goes on; None after a failure that is final.

        After one that is not, it is the start of the burst that failed: its state is the last one.
        """
        if self.failure is None:
            return self.step
        return None if self.failure.final else self.burst_start

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
        if step is None:
            return self._last.get(split)
        found = [e for e in self.evaluations if e.step == step and e.split == split]
        return max(found, key=lambda e: e.examples, default=None)

    @cached_property
    def _last(self) -> dict[Split, Evaluation]:
        last: dict[Split, Evaluation] = {}
        for new in self.evaluations:
            old = last.get(new.split)
            if old is None or (new.step, new.examples) > (old.step, old.examples):
                last[new.split] = new
        return last


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
    """Join the bursts of one trial, in order; raises ValueError where they do not follow on.

    A failure that is not final stands until a burst follows that starts where the failed one did,
    or where an earlier one did: what was recorded beyond that step is dropped, and the history
    goes on from there.
    """
    kept: list[Burst] = []
    seconds, end, failure = 0.0, 0, None
    for burst in bursts:
        if failure is not None and not failure.final:
            while kept and kept[-1].start >= burst.start:
                end, failure = kept.pop().start, None
        same = burst.trial is trial or burst.trial == trial
        if not same or burst.start != end or failure is not None:
            raise ValueError(f"the records of {trial} do not follow on at step {burst.start}")
        kept.append(burst)
        seconds += burst.seconds
        end += len(burst.loss)
        failure = burst.failure
    probe_steps = array("q")
    evaluations: list[Evaluation] = []
    for burst in kept:
        probe_steps.extend(burst.probe_steps)
        evaluations.extend(burst.evaluations)
    return History(
        trial=trial,
        target=target,
        loss=np.concatenate([_NONE, *[b.loss for b in kept]]),
        probe_steps=np.array(probe_steps, dtype=np.int64),
        probe_metric=np.concatenate([_NONE, *[b.probe_metric for b in kept]]),
        evaluations=tuple(evaluations),
        failure=failure,
        seconds=seconds,
        burst_start=kept[-1].start if kept else 0,
        skipped=sum(burst.skipped for burst in kept),
    )


_NONE = np.empty(0, np.float64)
