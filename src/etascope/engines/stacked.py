"""All rates of a seed as one program: what fills an accelerator, where one model cannot.

Trials of one seed that stand at the same step go on in lock step: they see the same batch and the
same dropout masks, so their forward and backward passes are one (`etascope.engines.stack`). All
else, from the optimizer to the failure, is each trial's own, as in the serial engine. A trial that
has ended leaves the stack, and the others go on without it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Self

import torch

from etascope.engines.base import Done, Work, state_after, stops_of, train
from etascope.engines.stack import Stack
from etascope.engines.stackable import RATES, in_short, obstacle
from etascope.errors import RAISED
from etascope.plan import Plan
from etascope.problems.contents import Batch
from etascope.problems.problem import Problem
from etascope.problems.stream import BatchStream
from etascope.randomness import undisturbed
from etascope.records import Burst, TrialId
from etascope.state import pack, unpack
from etascope.trial import Answer, Course, Stopping, Tick, Trial

AT_ONCE = 8  # where memory cannot be asked for; on a CPU more would gain nothing
AT_MOST = 64
SHARE = 0.8  # of the free memory that is planned with


class StackedEngine:
    """Trains the rates of a seed as one program; see `etascope.engines.base.Engine`.

    Where the problem does not allow that, which one step on copies shows, it trains one trial
    after another and `about` says why.

    Args:
        problem, plan: what to train and how.
        at_once: how many rates to stack; by default 8 on a CPU, and on an accelerator as many as
            its memory holds.
    """

    def __init__(self, problem: Problem, plan: Plan, at_once: int | None = None) -> None:
        self._problem, self._plan = problem, plan
        self._obstacle = obstacle(problem, plan)
        self.at_once = 1 if self._obstacle else at_once or _room(problem, plan)
        self.about = self._told()

    def _told(self) -> str:
        device = self._problem.torch_device
        if self._obstacle is not None:
            return f"stacked, but one model at a time on {device}: {self._obstacle}"
        rates = "rate" if self.at_once == 1 else "rates"
        return f"stacked: up to {self.at_once} {rates} of a seed as one program on {device}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def run(
        self, work: Iterable[Work], *, tick: Tick | None = None, stopping: Stopping | None = None
    ) -> Iterator[Done]:
        """Train each piece of work to its target, together with those it can be stacked with."""
        waiting, pieces = iter(work), list[Work]()
        while stopping is None or not stopping():
            pieces += islice(waiting, self.at_once - len(pieces))
            if not pieces:
                return
            first = pieces[0]
            if self._obstacle is not None:
                pieces.remove(first)
                yield from train(self._problem, self._plan, first, tick, stopping)
                continue
            group = [p for p in pieces if (p.trial.seed, p.step) == (first.trial.seed, first.step)]
            pieces = [p for p in pieces if p not in group]
            lockstep = _Lockstep(self._problem, self._plan, group, tick, stopping)
            yield from lockstep.run()
            self._obstacle = lockstep.obstacle
            self.about = self._told()


class _Member:
    """A trial in lock step with others.

    Attributes:
        batches: those of the step whose loss its course waits for.
        burst: what its course has ended with.
        seconds: its share of the time since the burst before.
    """

    def __init__(self, problem: Problem, plan: Plan, work: Work, stream: BatchStream) -> None:
        state = None if work.state is None else unpack(work.state)
        self.trial = Trial(problem, plan, work.trial, state, stream)
        self.stops = stops_of(plan, self.trial.step, work.target)
        self.batches: list[Batch] = []
        self.burst: Burst | None = None
        self.seconds = 0.0
        self._course: Course | None = None

    @property
    def at_work(self) -> bool:
        """Whether a burst is in progress."""
        return self._course is not None

    def begin(self, tick: Tick | None, stopping: Stopping) -> None:
        """Begin the next burst, unless one is in progress."""
        if not self.at_work:
            self._course = self.trial.course(self.stops.pop(0), tick, stopping)
            self.go_on(None)

    def go_on(self, answer: Answer | None) -> None:
        """Hand in what the course waits for, and go on to the next step."""
        assert self._course is not None
        try:
            self.batches = self._course.send(answer)
        except StopIteration as end:
            self.burst = end.value

    def done(self) -> Done:
        """Hand out the burst that has ended."""
        assert self.burst is not None
        burst = replace(self.burst, seconds=self.seconds)
        self.burst, self._course, self.seconds = None, None, 0.0
        if burst.failure is not None:
            self.stops = []
        state = state_after(self.trial, burst)
        return Done(burst, None if state is None else pack(state))


class _Lockstep:
    """Trials of one seed at one step, until each has reached its target.

    Attributes:
        obstacle: why they cannot be stacked after all; None where they can.
    """

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        work: list[Work],
        tick: Tick | None,
        stopping: Stopping | None,
    ) -> None:
        stream = BatchStream(problem, work[0].trial.seed, plan.accumulate)
        self.obstacle: str | None = None
        self._device = problem.torch_device
        self._members = [_Member(problem, plan, piece, stream) for piece in work]
        self._largest = len(work)
        self._stacks: dict[tuple[TrialId, ...], Stack] = {}
        self._tick, self._stopping = tick, stopping or (lambda: False)
        self._stop = threading.Event()  # asked for once a step, so that all hear the same

    def run(self) -> Iterator[Done]:
        """Train, one burst a rung."""
        while self._members:
            with undisturbed(self._device):
                self._until_one_ends()
            for member in self._members:
                if member.burst is not None:
                    yield member.done()
            self._look_up()
            left = [m for m in self._members if m.at_work or (m.stops and not self._stop.is_set())]
            if len(left) < len(self._members):
                self._members = left
                self._stacks.clear()

    def _until_one_ends(self) -> None:
        began = time.perf_counter()
        for member in self._members:
            member.begin(self._tick, self._stop.is_set)
        while all(member.burst is None for member in self._members):
            self._look_up()
            for member, answer in zip(self._members, self._answers(), strict=True):
                member.go_on(answer)
            now = time.perf_counter()
            for member in self._members:
                member.seconds += (now - began) / len(self._members)
            began = now

    def _look_up(self) -> None:
        if self._stopping():
            self._stop.set()

    def _answers(self) -> list[Answer]:
        """The losses of a step, or the exceptions that computing them raised."""
        firsts = range(0, len(self._members), self._largest)
        parts = [self._members[first : first + self._largest] for first in firsts]
        return [answer for part in parts for answer in self._together(part)]

    def _together(self, part: list[_Member]) -> list[Answer]:
        if len(part) == 1 or self.obstacle is not None:
            return [member.trial.attempt(member.batches) for member in part]
        try:
            return [*self._stack(part).backpropagate(part[0].batches)]
        except torch.OutOfMemoryError:
            obstacle = None
        except RAISED as error:  # it may be that of one trial
            obstacle = in_short(error)
        if obstacle is None:
            return self._in_halves(part)
        answers = [member.trial.attempt(member.batches) for member in part]
        if not any(isinstance(answer, RAISED) for answer in answers):
            self.obstacle = obstacle  # it was nobody's: only the stack cannot do this
        return answers

    def _stack(self, part: list[_Member]) -> Stack:
        key = tuple(member.trial.id for member in part)
        if key not in self._stacks:
            self._stacks[key] = Stack([member.trial for member in part])
        return self._stacks[key]

    def _in_halves(self, part: list[_Member]) -> list[Answer]:
        """The step again, after memory ran out."""
        self._largest = half = len(part) // 2
        self._stacks.clear()
        if self._device.type != "cpu":
            torch.get_device_module(self._device).empty_cache()
        return self._together(part[:half]) + self._together(part[half:])


def _room(problem: Problem, plan: Plan) -> int:
    """How many models fit into the free memory, by what one of them takes in two steps."""
    device = problem.torch_device
    memory = torch.get_device_module(device)
    if not hasattr(memory, "mem_get_info"):
        return AT_ONCE
    memory.empty_cache()
    memory.reset_peak_memory_stats(device)
    before, ticks = memory.memory_allocated(device), list[int]()
    Trial(problem, plan, TrialId(RATES[0], 0)).advance(
        plan.steps + 1,  # never reached, so nothing is evaluated
        tick=lambda _, step, *__: ticks.append(step),
        stopping=lambda: len(ticks) >= min(2, plan.steps),
    )
    needed = memory.max_memory_allocated(device) - before
    free, _ = memory.mem_get_info(device)
    return max(1, min(AT_MOST, int(SHARE * free / max(1, needed))))
