"""From the events of torch's profiler to the calls of one step, as a tree of frames."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from etascope.errors import UsageError
from etascope.inspection.traffic import Traffic


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


def frames(root: Frame) -> Iterator[Frame]:
    """A frame and all below it, depth first."""
    yield root
    for child in root.children:
        yield from frames(child)


def chain(events: Any, calls: list[Traffic], optimizer: str) -> Frame:
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
