"""One trial: a training that is a pure function of (problem, plan, learning rate, seed).

Step `t` draws its dropout masks from the stream `(seed, "step", t)` and batch `b` is drawn under
`(seed, "batch", b)`, so a trial that was paused and restored goes on exactly as one that was not.
Between bursts nothing of the process is held: global random state, thread count and flags are the
caller's again. What modules and optimizer keep as plain attributes is part of a state as soon as it
changes, and generators of the user's own are set to the same streams as the global ones.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from etascope.attributes.kept import Attributes
from etascope.diagnosis.signals import all_finite, first_non_finite
from etascope.errors import RAISED, text_of
from etascope.plan import Plan
from etascope.problems.contents import Batch
from etascope.problems.control import LOOKED_AT, Control, finite_gradient
from etascope.problems.owned import roots_of
from etascope.problems.problem import Problem, evaluating
from etascope.problems.stream import BatchStream, Place
from etascope.randomness import adopt, seed_everything, undisturbed
from etascope.records import Burst, Evaluation, Failure, TrialId
from etascope.state import TrialState

Tick = Callable[[TrialId, int, float, float | None], None]
Stopping = Callable[[], bool]
Answer = float | Exception | SystemExit  # the loss of a step, or what computing it raised
Course = Generator[list[Batch], Answer | None, Burst]

REMEDY_NON_FINITE = "lower the rate, warm it up, or clip the gradient"
REMEDY_EXCEPTION = "mend the code that raised; a rerun with the same command skips what is done"


@dataclass
class _Notes:
    """What a burst writes down while it runs."""

    loss: list[float] = field(default_factory=list)
    probe_steps: list[int] = field(default_factory=list)
    probe_metric: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    failure: Failure | None = None
    skipped: int = 0


class Trial:
    """One training in progress, on copies of the user's objects.

    Args:
        problem: what is trained.
        plan: how.
        trial: learning rate and seed.
        state: where to go on; None to start.
        stream: its batches; shared by trials that go in lock step, by default its own.
    """

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        trial: TrialId,
        state: TrialState | None = None,
        stream: BatchStream | None = None,
    ) -> None:
        self.problem, self.plan, self.id = problem, plan, trial
        self.step = state.step if state else 0
        self._state = state
        self._stream = stream or BatchStream(problem, trial.seed, plan.accumulate)
        self._place = (state.epoch, state.position) if state else (0, 0)
        self._taken = state.step + state.skipped if state else 0  # draws of a step's batches
        self._before = deque[Place](maxlen=2)  # where the last draws of this burst began
        self._model: nn.Module | None = None

    def advance(
        self, target: int, tick: Tick | None = None, stopping: Stopping | None = None
    ) -> Burst:
        """Train up to `target` steps and evaluate there.

        A failure ends the burst and is part of it. When `stopping` becomes true the burst ends
        after the step in progress, without an evaluation.
        """
        with undisturbed(self.problem.torch_device):
            course = self.course(target, tick, stopping)
            answer: Answer | None = None
            try:
                while True:
                    answer = self.attempt(course.send(answer))
            except StopIteration as end:
                burst: Burst = end.value
                return burst

    def course(
        self, target: int, tick: Tick | None = None, stopping: Stopping | None = None
    ) -> Course:
        """What `advance` does, but for the gradients, which whoever drives it supplies.

        Yields:
            The batches of a step. Send their loss once its gradient stands in the `grad` of the
            parameters, or the exception that computing it raised.

        Returns:
            The burst. Run it inside `undisturbed`; between two steps that may be left.
        """
        notes, start, began = _Notes(), self.step, time.perf_counter()
        try:
            if self._model is None:
                self._build()
            yield from self._train(target, notes, tick, stopping or (lambda: False))
            if self.step == target and notes.failure is None:
                self._evaluate(notes)
        except RAISED as error:  # user code ends its own trial only
            notes.failure = Failure(self.step, "exception", None, text_of(error), REMEDY_EXCEPTION)
        return Burst(
            trial=self.id,
            start=start,
            stop=self.step,
            loss=tuple(notes.loss),
            probe_steps=tuple(notes.probe_steps),
            probe_metric=tuple(notes.probe_metric),
            evaluations=tuple(notes.evaluations),
            failure=notes.failure,
            skipped=notes.skipped,
            seconds=time.perf_counter() - began,
        )

    @property
    def model(self) -> nn.Module:
        """What is trained; raises ValueError before the trial has begun."""
        if self._model is None:
            raise ValueError("a trial that has not begun has no model and no state")
        return self._model

    def state(self) -> TrialState:
        """All that is needed to go on from here; its tensors are the trial's own, not copies."""
        model = self.model
        return TrialState(
            step=self.step,
            epoch=self._place[0],
            position=self._place[1],
            skipped=self._taken - self.step,
            model=dict(_tensors(model)),
            extra={name: module.get_extra_state() for name, module in with_extra_state(model)},
            optimizer=self._optimizer.state_dict(),
            schedule=None if self._schedule is None else self._schedule.state_dict(),
            attributes=self._attributes.changed()[0],
        )

    def lost(self) -> list[str]:
        """The attributes that have changed and that no state can hold, by name."""
        return self._attributes.changed()[1]

    # Building and restoring -------------------------------------------------------------------

    def _build(self) -> None:
        model = self.problem.make_model(self.id.seed)
        self._optimizer = self.plan.make_optimizer(model, self.id.lr)
        self._schedule = self.plan.make_schedule(self._optimizer)
        adopt(self, {"optimizer": self._optimizer, "schedule": self.plan.schedule})
        roots = {**roots_of(model), "optimizer": self._optimizer}
        parts = {**self.problem.parts, "optimizer": self.plan.optimizer}
        self._attributes = Attributes(roots, parts)
        if self._state is not None:
            self._restore(model, self._state)
            self._state = None
        self._model = model

    def _restore(self, model: nn.Module, state: TrialState) -> None:
        _register(model, state.model)
        with torch.no_grad():
            for name, tensor in _tensors(model):
                saved = state.model[name]
                if tensor.shape == saved.shape:
                    tensor.copy_(saved)
                else:
                    tensor.data = saved.to(tensor)
        for name, module in with_extra_state(model):
            module.set_extra_state(state.extra[name])
        self._optimizer.load_state_dict(_cloned(dict(state.optimizer)))
        if self._schedule is not None and state.schedule is not None:
            self._schedule.load_state_dict(_cloned(dict(state.schedule)))
        self._attributes.restore(state.attributes)

    # Training ---------------------------------------------------------------------------------

    def backpropagate(self, batches: list[Batch]) -> float:
        """The loss of a step; its gradient is in the `grad` of the parameters then."""
        self._optimizer.zero_grad()
        self.seed_step()
        total = 0.0
        for batch in batches:
            with self.precision():
                loss = self.problem.loss(self.model, batch) / len(batches)
            if not self.problem.owns_step:
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def attempt(self, batches: list[Batch]) -> Answer:
        """The same as a value, also where it raises."""
        try:
            return self.backpropagate(batches)
        except RAISED as error:  # the course tells whose it is
            return error

    def _train(
        self, target: int, notes: _Notes, tick: Tick | None, stopping: Stopping
    ) -> Generator[list[Batch], Answer | None]:
        model = self.model
        while self.step < target and notes.failure is None and not stopping():
            loss, probe = yield from self._gradient(notes)
            if notes.failure is not None:
                return
            if self.plan.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.plan.clip)
            self._optimizer.step()
            self.step += 1
            if self._schedule is not None and self.step < self.plan.steps:
                self._schedule.step()
            if tick is not None:
                tick(self.id, self.step, loss, probe)

    def _gradient(
        self, notes: _Notes
    ) -> Generator[list[Batch], Answer | None, tuple[float, float | None]]:
        """The loss and probe of the step, once its gradient is there.

        Where it is not finite the step has failed; or, where the plan allows it and the batches
        are to blame, the next ones are taken, until there were as many as can be looked at.
        """
        skip, loss = self.plan.skip_unusable, math.nan
        for draw in range(LOOKED_AT + 1):
            self._before.append(self._place)
            batches, self._place = self._stream.take(self._taken, self._place)
            self._taken += 1
            kept = [b.clone() for b in self.model.buffers()] if skip else []
            probe = self._probe(self.model, batches[0], notes)
            answer = yield batches
            if not isinstance(answer, float):
                raise answer or RuntimeError("a course was sent no loss")
            loss = answer
            notes.loss.append(loss)
            if math.isfinite(loss) and (not skip or finite_gradient(self.model)):
                break
            unusable = self._control().failure(batches, self.step, self._taken, self._place)
            if not (skip and unusable and draw < LOOKED_AT):
                # A gradient that is not finite by the rate shows in the weights of the next step.
                if not math.isfinite(loss) or unusable:
                    what = f"the training loss became {loss}"
                    notes.failure = unusable or self._diverged(batches, what, self._taken - 1)
                break
            notes.skipped += len(batches)
            notes.loss.pop()
            if probe is not None:
                notes.probe_steps.pop()
                notes.probe_metric.pop()
            with torch.no_grad():
                for buffer, before in zip(self.model.buffers(), kept, strict=True):
                    buffer.copy_(before)
        return loss, probe

    def _probe(self, model: nn.Module, batch: Batch, notes: _Notes) -> float | None:
        """The metric of a training batch, dropout off, before its update."""
        if self.problem.metric is None or self.step % self.plan.probe_every:
            return None
        self.seed_step("probe")
        with evaluating(model), self.precision():
            values = self.problem.measure(model, batch, self.problem.count_training(batch))
        notes.probe_steps.append(self.step)
        notes.probe_metric.append(float(values.mean()))
        return notes.probe_metric[-1]

    def seed_step(self, name: str = "step") -> None:
        """Draw from the stream of this step from here on."""
        seed_everything(self.problem.torch_device, self.id.seed, name, self.step)

    def _evaluate(self, notes: _Notes) -> None:
        model = self.model
        if not all_finite(model):
            batch = next(self.problem.held_out("valid"))
            notes.failure = self._diverged([batch], "a weight became non-finite", self._taken)
            return
        last = self.step == self.plan.steps
        limit = None if last else self.plan.rung_examples
        with self.precision():
            valid = self.problem.evaluate(model, "valid", self.step, limit)
            notes.evaluations.append(valid)
            if last and "test" in self.problem.sources:
                notes.evaluations.append(self.problem.evaluate(model, "test", self.step))
        if not math.isfinite(valid.loss):
            batch = next(self.problem.held_out("valid"))
            what = f"the held-out loss became {valid.loss}"
            unusable = self._control().held_out_failure(self.step, limit)
            notes.failure = unusable or self._diverged([batch], what, self._taken)

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast to bfloat16 where the plan says so; weights and optimizer stay float32."""
        if self.plan.precision == "float32":
            return nullcontext()
        # A cast is kept until the outermost autocast ends, which `undisturbed` puts off: by then
        # the weights have moved on.
        device = self.problem.torch_device.type
        return torch.autocast(device, torch.bfloat16, cache_enabled=False)

    def _control(self) -> Control:
        return Control(self.problem, self.id.seed, self.plan.accumulate, self.precision)

    def _diverged(self, batches: list[Batch], what: str, taken: int) -> Failure:
        """The failure of a forward pass that is not finite.

        The gradient of the step before it may have been the first that was not: then the weights
        are not finite either, and its batches are looked at too.

        Args:
            batches: those of the forward pass.
            what: became non-finite.
            taken: the draws of the steps that have been taken.
        """
        model, skip = self.model, self.plan.skip_unusable
        if self.step and not skip and not all_finite(model):
            control, back = self._control(), self._taken - taken
            before = self._before[-1 - back] if len(self._before) > back else None
            last, place = control.batches_before(taken, before)
            unusable = control.failure(last, self.step - 1, taken, place, self.step)
            if unusable is not None:
                return unusable

        def forward() -> None:
            self.seed_step()
            for batch in batches:
                self.problem.loss(model, batch)

        found = first_non_finite(model, forward)
        where = f"; first in the {found[1]} of {found[0]}" if found else ""
        message = f"{what} after {self.step} updates{where}"
        return Failure(
            self.step, "non-finite", found[0] if found else None, message, REMEDY_NON_FINITE
        )


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer once; buffers that state_dict leaves out are among them."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _register(model: nn.Module, saved: Mapping[str, torch.Tensor]) -> None:
    """Give the model the buffers that were saved and no other: one may come or go in training."""
    for name in dict(model.named_buffers()).keys() - saved.keys():
        owner, _, key = name.rpartition(".")
        model.get_submodule(owner)._buffers[key] = None
    for name in saved.keys() - dict(_tensors(model)).keys():
        owner, _, key = name.rpartition(".")
        module = model.get_submodule(owner)
        if key in module._parameters:
            module._parameters[key] = nn.Parameter(saved[name].clone())
        else:
            module._buffers[key] = saved[name].clone()


def with_extra_state(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that keep a state beside parameters and buffers."""
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            yield name, module


def _cloned(value: Any) -> Any:
    """The same structure with copies of its tensors; strides stay."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {key: _cloned(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_cloned(item) for item in value)
    return value
