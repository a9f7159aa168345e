"""The rehearsal: a few steps of one trial, in one go and with a pause, before anything is trained.

It times a step, and it finds what would make two trials differ for another reason than the rate.
One training is done twice: once undisturbed, once with probes, an evaluation and a pause through
the bytes of a state, after batches of another seed were drawn. Batches, losses, weights and
evaluations must be equal. Where they are not, a third training, like the first, tells whether
something outside the trial changes from run to run or the pause has lost something, and what has
changed meanwhile is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import nn

from etascope.attributes.painter import digest
from etascope.errors import RAISED, StudyError, UsageError
from etascope.plan import Plan
from etascope.problems.contents import Batch, tensors_of
from etascope.problems.problem import Problem
from etascope.problems.stream import BatchStream, Place
from etascope.randomness import random_states, undisturbed
from etascope.reach import names_of, prints_of, reachable
from etascope.records import Evaluation, TrialId
from etascope.state import TrialState, pack, unpack
from etascope.tensors import bytes_of
from etascope.trial import Trial

STEPS = 4  # of each run; a pause is in the middle
HELD_OUT = 2  # held-out batches that are evaluated
BATCHES = "training batches"
ROUNDING = 1e-2  # of a loss or a weight on an accelerator, whose sums have no fixed order
NOTHING = (
    "something that was not found (the clock, a file, a generator made anew in each call, the "
    "state of a library)"
)


class Rehearsal(NamedTuple):
    """What a step costs here, and how large a state is after it."""

    step_seconds: float
    state_bytes: int


def rehearse(problem: Problem, plan: Plan, trial: TrialId) -> Rehearsal:
    """Train a few steps of a trial, again with a pause, and forget them.

    A run that fails is left to the checks and to the study, which can tell it better.

    Raises:
        UsageError: if the two differ; it names what changes outside the trial or gets lost.
    """
    count = min(STEPS, plan.steps)
    before = _outside(problem, plan)
    first = _train(problem, plan, trial, count)
    after = _outside(problem, plan)
    if first is None:
        return Rehearsal(0.0, 0)
    changed = [path for path, shown in after.items() if before.get(path) != shown]
    _draw_others(problem, plan, trial.seed + 1)
    second = _train(problem, plan, trial, count, pause=count // 2)
    if second is not None:
        _compare(first, second, lambda: _train(problem, plan, trial, count), changed)
    return Rehearsal(first.step_seconds, first.state_bytes)


def _compare(
    first: _Run, second: _Run, repeat: Callable[[], _Run | None], changed: list[str]
) -> None:
    """Raise UsageError where two runs differ, and say why."""
    if not first.agree(first.evaluations):
        raise UsageError(_evaluation_message([*first.lost, *changed]))
    difference = first.difference(second)
    if difference == BATCHES:
        raise UsageError(_data_message(changed))
    if difference is None:
        return
    third = repeat()
    repeated = None if third is None else first.difference(third)
    if repeated is not None:
        raise UsageError(_outside_message(repeated, changed))
    raise UsageError(_lost_message(difference, [*second.lost, *changed]))


class _Run(NamedTuple):
    """What a few steps of a trial came to."""

    drawn: list[Any]
    losses: list[float]
    weights: dict[str, torch.Tensor]
    evaluations: list[Evaluation]
    kept: str
    lost: list[str]
    step_seconds: float
    state_bytes: int
    exact: bool

    def difference(self, other: _Run) -> str | None:
        """The first thing by which two runs differ."""
        if self.drawn != other.drawn:
            return BATCHES
        if not all(map(self._close, self.losses, other.losses)):
            return "training loss"
        if self.weights.keys() != other.weights.keys() or not all(
            self._equal(tensor, other.weights[name]) for name, tensor in self.weights.items()
        ):
            return "weights or buffers"
        if not self.agree([*self.evaluations, *other.evaluations]):
            return "held-out loss or metric"
        return "state of the optimizer" if self.exact and self.kept != other.kept else None

    def agree(self, evaluations: list[Evaluation]) -> bool:
        """Whether evaluations gave the same."""
        first = evaluations[0]
        return all(
            self._close(first.loss, e.loss) and self._close(first.metric or 0.0, e.metric or 0.0)
            for e in evaluations
        )

    def _close(self, ours: float, theirs: float) -> bool:
        if self.exact or not math.isfinite(ours):
            return ours == theirs or (math.isnan(ours) and math.isnan(theirs))
        return math.isclose(ours, theirs, rel_tol=ROUNDING)

    def _equal(self, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return False
        if self.exact or not ours.is_floating_point():
            return not self.exact or digest(ours) == digest(theirs)
        return bool((ours - theirs).norm() <= ROUNDING * (1e-6 + ours.norm()))


class _Recorded(BatchStream):
    """A stream of batches that notes what it gave, and what was drawn for it."""

    def __init__(self, problem: Problem, seed: int, count: int) -> None:
        super().__init__(problem, seed, count)
        self.drawn: list[Any] = []

    def take(self, step: int, place: Place) -> tuple[list[Batch], Place]:
        """The batches of a step: see `BatchStream.take`."""
        given = super().take(step, place)
        # A dataset that keeps what it once drew draws less the second time.
        self.drawn.append(([digest(t) for t in tensors_of(given[0])], random_states()))
        return given


class _Quiet(Trial):
    """A trial without probes."""

    def _probe(self, model: nn.Module, batch: Batch, notes: Any) -> float | None:
        return None


def _train(problem: Problem, plan: Plan, trial: TrialId, count: int, pause: int = 0) -> _Run | None:
    """The first steps of a trial; None if it fails. With a pause, it is also probed throughout."""
    stream = _Recorded(problem, trial.seed, plan.accumulate)
    ticks: list[float] = []
    losses: list[float] = []
    state: TrialState | None = None
    evaluations: list[Evaluation] = []
    busy = replace(plan, probe_every=1) if pause else plan
    for stop in (pause, count) if pause else (count,):
        made = (Trial if pause else _Quiet)(problem, busy, trial, state, stream)
        burst = made.advance(
            plan.steps + 1,  # never reached: this is no rung
            tick=lambda *_: ticks.append(perf_counter()),
            stopping=lambda made=made, stop=stop: made.step >= stop,  # type: ignore[misc]
        )
        if burst.failure is not None:
            return None
        losses += burst.loss
        try:
            evaluations = _evaluate(problem, made)
        except RAISED:
            return None
        try:
            state = unpack(pack(made.state()))
        except StudyError as error:  # found now, and not when a rung is reached
            raise UsageError(str(error)) from error
    assert state is not None
    return _Run(
        drawn=stream.drawn,
        losses=losses,
        weights=dict(state.model),
        evaluations=evaluations,
        kept=repr(_shown([state.optimizer, state.schedule, state.extra])),
        lost=[*made.lost(), *_iterators(made.model)],
        step_seconds=(ticks[-1] - ticks[0]) / max(1, len(ticks) - 1),
        state_bytes=_bytes(vars(state)),
        exact=problem.torch_device.type == "cpu",
    )


def _evaluate(problem: Problem, trial: Trial) -> list[Evaluation]:
    """Two evaluations of the same weights."""
    limit = (HELD_OUT - 1) * problem.batch_size + 1
    with undisturbed(problem.torch_device), trial.precision():
        return [problem.evaluate(trial.model, "valid", trial.step, limit) for _ in range(2)]


def _draw_others(problem: Problem, plan: Plan, seed: int) -> None:
    """Draw batches of another seed, so that what was drawn before can be seen to matter."""
    with undisturbed(problem.torch_device):
        try:
            BatchStream(problem, seed, plan.accumulate).take(0, (0, 0))
        except RAISED:  # the study can tell it better
            return


def _shown(value: Any) -> Any:
    """A structure with digests in the place of its tensors."""
    if isinstance(value, torch.Tensor):
        return digest(value)
    if isinstance(value, Mapping):
        return [(_shown(k), _shown(v)) for k, v in value.items()]
    return [*map(_shown, value)] if isinstance(value, (list, tuple)) else value


def _bytes(value: object) -> int:
    """The memory of all tensors in a structure."""
    if isinstance(value, torch.Tensor):
        return bytes_of(value)
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


def _iterators(model: nn.Module) -> list[str]:
    """What of a model goes on by itself and cannot go back."""
    return [path for path, value in reachable({"model": model}) if isinstance(value, Iterator)]


# What changes outside of a trial --------------------------------------------------------------


def _outside(problem: Problem, plan: Plan) -> dict[str, str]:
    """What the user's code can reach, as it looks now, by path."""
    return prints_of({**problem.parts, "optimizer": plan.optimizer, "schedule": plan.schedule})


def _data_message(changed: list[str]) -> str:
    own = [path for path in changed if path.startswith(("train", "collate"))]
    return (
        "train gives other batches when they are drawn again, so rates would not be compared on "
        f"the same data: {names_of(own or changed) or NOTHING} changes with what was drawn before; "
        "make an example a function of its index and of generators of torch, numpy or random that "
        "are kept"
    )


def _outside_message(what: str, changed: list[str]) -> str:
    return (
        f"a training that is repeated differs in its {what}, so rates would differ for another "
        f"reason than the rate: {names_of(changed) or NOTHING} changes from run to run outside the "
        "model; keep it in the model, as an attribute or a buffer"
    )


def _evaluation_message(changed: list[str]) -> str:
    return (
        "two evaluations of the same weights differ in their loss or metric: "
        f"{names_of(changed) or NOTHING} changes with an evaluation and cannot be put back; keep "
        "numbers, tensors, lists and dicts of them in the model, which are"
    )


def _lost_message(what: str, lost: list[str]) -> str:
    return (
        f"a training that is paused and evaluated on its way differs in its {what} from one that "
        f"is not: {names_of(lost) or NOTHING} is lost with a pause; keep numbers, tensors, lists "
        "and dicts of them as attributes of the model or the optimizer, which are saved"
    )
