"""What one optimizer step really runs: from `step()` to the operators, and what they move."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from etascope.arguments import whole
from etascope.errors import StudyError, UsageError
from etascope.factories import check_factories
from etascope.inspection.traffic import Traffic, TrafficLog, copy_bandwidth, timed
from etascope.plan import Plan
from etascope.problems.checks import named
from etascope.problems.problem import Problem
from etascope.problems.registry import get_problem
from etascope.randomness import undisturbed

RATE = 1e-3


@dataclass(frozen=True)
class Frame:
    """A Python function or an operator, with what it called."""

    name: str
    """`adam.py:118 step`, or `aten::add_`."""
    where: str
    """The file of a Python function; empty for an operator."""
    seconds: float
    """With all that it called, while it was profiled; Python is slower then."""
    thread: int
    traffic: tuple[Traffic, ...]
    """Of an operator: what it ran and moved. Empty for Python."""
    children: tuple[Frame, ...]

    @property
    def bytes(self) -> int:
        """What it and all below it read and write."""
        own = sum(call.read + call.written for call in self.traffic)
        return own + sum(child.bytes for child in self.children)


@dataclass(frozen=True)
class CallStack:
    """One step of an optimizer."""

    problem: str
    optimizer: str
    threads: int
    parameters: int
    """How many numbers are trained."""
    parameter_bytes: int
    root: Frame
    seconds: float
    """Of a step, not profiled: the median of 15."""
    copy_bytes_per_second: float
    """What copying between as many bytes as the step touches reaches, with as many threads."""

    @property
    def traffic(self) -> tuple[Traffic, ...]:
        """What every operator moves, in order."""
        return tuple(call for frame in frames(self.root) for call in frame.traffic)

    @property
    def bytes(self) -> int:
        """What the step reads and writes."""
        return self.root.bytes

    @property
    def passes(self) -> float:
        """How often the step goes over the memory of the parameters."""
        return self.bytes / self.parameter_bytes

    @property
    def bytes_per_second(self) -> float:
        """What it reaches."""
        return self.bytes / self.seconds


def frames(root: Frame) -> Iterator[Frame]:
    """A frame and all below it, depth first."""
    yield root
    for child in root.children:
        yield from frames(child)


def callstack(
    problem: Problem,
    optimizer: str | Callable[[nn.Module, float], Optimizer] = "adam",
    *,
    threads: int | None = None,
    trace: str | os.PathLike[str] | None = None,
) -> CallStack:
    """Run real training steps on copies and describe what the last `step()` ran.

    Two steps make what the optimizer keeps; then, on one gradient, it is timed, profiled with its
    Python stack, and its operators' tensors are measured.

    Args:
        problem: what is trained.
        optimizer: a registered name, or a factory `(model, lr) -> torch.optim.Optimizer`.
        threads: how many torch may use; as many as it has now if None.
        trace: also write what the profiler saw, for chrome://tracing or ui.perfetto.dev.

    Raises:
        UsageError: for an optimizer that does not exist or that no trial could use, a part of the
            problem that raises, a profiler that is running already, or an optimizer whose step
            runs no operator, or not the same ones each time.
        StudyError: if the trace cannot be written.

    Example:
        >>> import etascope as es
        >>> step = callstack(es.get_problem("mnist-cnn"), threads=1)
        >>> step.traffic[-1].operator, round(step.passes)
        ('aten::_fused_adam_', 7)

    Source: torch.profiler; the schema of each operator says what it changes.
    """
    count = torch.get_num_threads() if threads is None else whole("threads", threads, least=1)
    device = problem.torch_device
    # A profiler inside another would throw away what that has seen.
    if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
        raise UsageError("torch's profiler is running already; call callstack outside of it")
    check_factories(problem, Plan(optimizer=optimizer, steps=3), RATE)
    with undisturbed(device), _threads(count):
        made = _prepared(problem, optimizer)
        seconds = timed(made.step, device)
        with TrafficLog() as log:
            made.step()
        activities = [ProfilerActivity.CPU]
        with (
            _quiet(),
            profile(activities=activities, record_shapes=True, with_stack=True) as profiler,
        ):
            made.step()
        trained = [p for group in made.param_groups for p in group["params"]]
        size = sum(p.numel() * p.element_size() for p in trained)
        copied = copy_bandwidth(log.footprint, device)
    if trace is not None:
        _write_trace(profiler, Path(trace))
    name = optimizer if isinstance(optimizer, str) else type(made).__name__
    return CallStack(
        problem=problem.name,
        optimizer=name,
        threads=count,
        parameters=sum(p.numel() for p in trained),
        parameter_bytes=size,
        root=_tree(profiler.events(), log.calls, name),
        seconds=seconds,
        copy_bytes_per_second=copied,
    )


def marked_step(reference: str, optimizer: str, threads: int) -> None:
    """Take a step of a fresh training that a debugger can find: `getpgid` is called before it."""
    problem = get_problem(reference)
    with undisturbed(problem.torch_device), _threads(threads):
        made = _prepared(problem, optimizer)
        os.getpgid(0)
        made.step()


def _prepared(problem: Problem, optimizer: Any) -> Optimizer:
    """An optimizer that has made two steps and has the gradient of a third."""
    model = problem.make_model(0)
    with named("optimizer"):
        made = Plan(optimizer=optimizer, steps=3).make_optimizer(model, RATE)
    batches = problem.batches(0, 0)
    batch = next(batches)
    for step in range(3):
        batch = next(batches, batch)
        made.zero_grad()
        with named("loss"):
            problem.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        if step < 2:
            with named("optimizer"):
                made.step()
    return made


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the profiler's library writes to the standard error stream from the terminal."""
    if sys.stderr is None:  # it was closed before the process began
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _write_trace(profiler: Any, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"")  # the profiler itself does not say that it could not write
        profiler.export_chrome_trace(str(target))
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StudyError(
            f"cannot write the trace to {target}: {reason}; name another file"
        ) from error


# From the profiler's events ---------------------------------------------------------------------


def _tree(events: Any, calls: list[Traffic], optimizer: str) -> Frame:
    """The chain from `step()` on, without the branches that reach no operator.

    The calls were logged in the step before: they are told only if this one ran the same.
    """
    waiting = list(reversed(calls))
    steps = (e for e in events if re.search(r"optim/optimizer\.py\(\d+\): .*wrapper", e.name))
    top = next(steps, None)
    root = None if top is None else _frame(top, waiting)
    if root is None and not _moves(calls):
        raise UsageError(
            f"a step of {optimizer} runs no operator of torch; take an optimizer that does"
        )
    if root is None or _moves(waiting):
        raise UsageError(
            f"two steps of {optimizer} in a row ran different operators, so what one moves cannot "
            "be told; take an optimizer whose steps are alike"
        )
    return root


def _moves(calls: list[Traffic]) -> bool:
    return any(call.read + call.written > 0 for call in calls)


def _frame(event: Any, waiting: list[Traffic]) -> Frame | None:
    """What the event and those inside it are, or None if no operator is among them.

    The operators that the profiler saw come in the order in which they were logged; the profiler
    also sees operators that others call inside and that move nothing more.
    """
    name, where = _named(event.name)
    own = _taken(event.name, waiting)
    children: list[Frame] = []
    if not own:
        inner = sorted(event.cpu_children, key=lambda child: child.time_range.start)
        children = [frame for child in inner if (frame := _frame(child, waiting)) is not None]
    if not own and not children:
        return None
    if len(children) == 1 and not own and _is_plumbing(event.name):
        return children[0]
    return Frame(
        name=name,
        where=where,
        seconds=event.time_range.elapsed_us() / 1e6,
        thread=event.thread,
        traffic=tuple(own),
        children=tuple(children),
    )


def _taken(name: str, waiting: list[Traffic]) -> list[Traffic]:
    """The logged call that an event is, taken from those that wait; empty if it is none of them.

    The log has calls that the profiler does not see, such as detaching, which move nothing.
    """
    for at in range(len(waiting) - 1, -1, -1):
        if waiting[at].operator == name:
            call = waiting[at]
            del waiting[at:]
            return [call]
        if waiting[at].read + waiting[at].written > 0:
            return []
    return []


def _is_plumbing(name: str) -> bool:
    """Whether an event only passes on: a binding, or a mark of the profiler."""
    return name.startswith(("<built-in", "Optimizer.step#"))


def _named(event: str) -> tuple[str, str]:
    """A readable name, and the file of a Python function."""
    match = re.match(r"(?P<file>.+)\((?P<line>\d+)\): (?P<name>.+)", event)
    if match is None:
        return event, ""
    return match["name"], f"{match['file']}:{match['line']}"
