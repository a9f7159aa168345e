"""What one optimizer step really runs: from `step()` to the operators, and what they move."""

from __future__ import annotations

import os
import sys
import tempfile
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
from etascope.caller import left_as_it_was
from etascope.errors import StudyError, UsageError
from etascope.factories import check_factories
from etascope.files import write_atomically
from etascope.inspection.frames import Frame, chain, frames
from etascope.inspection.traffic import Traffic, TrafficLog, copy_bandwidth, timed
from etascope.plan import Plan
from etascope.problems.checks import named
from etascope.problems.problem import Problem
from etascope.problems.registry import get_problem
from etascope.randomness import undisturbed

RATE = 1e-3


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


@left_as_it_was()
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
        root=chain(profiler.events(), log.calls, name),
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
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / f"trace{target.suffix}"  # one that ends in .gz is compressed
            made.touch()  # the profiler itself does not say that it could not write
            profiler.export_chrome_trace(str(made))
            write_atomically(target, made.read_bytes())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StudyError(
            f"cannot write the trace to {target}: {reason}; name another file"
        ) from error
