"""Call stacks for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from etascope.inspection.callstack import CallStack
from etascope.inspection.frames import Frame
from etascope.inspection.frames import frames as walked
from etascope.inspection.native import NativeFrame, NativeStack
from etascope.inspection.traffic import Traffic


class Total(NamedTuple):
    """All calls of one operator."""

    operator: str
    calls: int
    read: int
    written: int


def totals(traffic: Iterable[Traffic]) -> list[Total]:
    """What each operator moved in all its calls, the most first."""
    found: dict[str, Total] = {}
    for call in traffic:
        before = found.get(call.operator, Total(call.operator, 0, 0, 0))
        read, written = before.read + call.read, before.written + call.written
        found[call.operator] = Total(call.operator, before.calls + 1, read, written)
    return sorted(found.values(), key=lambda total: -total.read - total.written)


def stack_text(stack: CallStack) -> RenderableType:
    """The chain from `step()` to the operators, their traffic, and the bandwidth they reach."""
    threads = f"{stack.threads} thread" + "s" * (stack.threads > 1)
    head = f"{stack.optimizer} on {stack.problem}: {stack.parameters:,} parameters, {threads}"
    tree = Tree(Text("step()", style="bold"))
    _grow(tree, [stack.root])
    table = Table("operator", box=None, pad_edge=False, header_style="dim")
    for name in ("calls", "reads MB", "writes MB"):
        table.add_column(name, justify="right")
    for total in totals(stack.traffic):
        sizes = (f"{total.read / 1e6:.2f}", f"{total.written / 1e6:.2f}")
        table.add_row(total.operator, str(total.calls), *sizes)
    share = stack.bytes_per_second / stack.copy_bytes_per_second
    summary = (
        f"{stack.bytes / 1e6:.1f} MB are {stack.passes:.1f} passes over the parameters; a step "
        f"takes {stack.seconds * 1e3:.2f} ms (median of 15, not profiled): "
        f"{stack.bytes_per_second / 1e9:.1f} GB/s. Copying between as many bytes as it touches "
        f"reaches {stack.copy_bytes_per_second / 1e9:.1f} GB/s: {share:.0%} of that."
    )
    return Group(Text(head, style="bold"), tree, Text(), table, Text(), Text(summary))


def _grow(branch: Tree, frames: Sequence[Frame]) -> None:
    """Add frames below a branch; calls of the same in a row are told once, together."""
    for _, row in groupby(frames, key=lambda frame: (frame.name, frame.where)):
        same = list(row)
        first = same[0]
        text = Text(first.name, style="green" if first.traffic else "")
        if len(same) > 1:
            text.append(f" × {len(same)}", style="bold")
        if first.where:
            text.append(f"  {first.where}", style="dim")
        threads = ", ".join(str(number) for number in sorted({frame.thread for frame in same}))
        seconds = sum(frame.seconds for frame in same)
        text.append(f"  {seconds * 1e3:.2f} ms, thread {threads}", style="dim")
        if first.traffic:
            text.append(_moved(totals(call for frame in same for call in frame.traffic)[0]))
        _grow(branch.add(text), [child for frame in _alike(same) for child in frame.children])


def _alike(frames: Sequence[Frame]) -> Sequence[Frame]:
    """One frame that stands for all, if below them is the same; else the frames themselves."""
    shapes = {tuple(frame.name for frame in walked(one)) for one in frames}
    if len(frames) == 1 or len(shapes) > 1:
        return frames
    return [merged(frames)]


def merged(frames: Sequence[Frame]) -> Frame:
    """Frames of the same calls as one: times and bytes are sums."""
    below = zip(*(frame.children for frame in frames), strict=True)
    return replace(
        frames[0],
        seconds=sum(frame.seconds for frame in frames),
        traffic=tuple(call for frame in frames for call in frame.traffic),
        children=tuple(merged(children) for children in below),
    )


def _moved(total: Total) -> Text:
    if total.read + total.written == 0:
        return Text()
    return Text(f"  reads {total.read / 1e6:.2f} MB, writes {total.written / 1e6:.2f} MB")


def native_text(stacks: Sequence[NativeStack]) -> RenderableType:
    """The C++ frames of each thread, from its start to the kernel."""
    if not stacks:
        none = "No operator of this step is split over threads, so there was nowhere to stop."
        return Group(Text(), Text(none))
    parts: list[RenderableType] = []
    for stack in stacks:
        who = "that called step()" if stack.thread == "caller" else "that worked for it"
        lines = [Text(), Text(f"the thread {who}, from its start", style="bold")]
        for inside, row in groupby(stack.frames, key=_is_interpreter):
            frames = list(row)
            if inside:
                lines.append(
                    Text(f"  … {len(frames)} frames of the Python interpreter", style="dim")
                )
                continue
            lines += [Text(f"  {f.name}").append(f"  {f.where}", style="dim") for f in frames]
        parts += lines
    return Group(*parts)


def _is_interpreter(frame: NativeFrame) -> bool:
    """Whether a frame is CPython's own: its source is C, or its name says so."""
    known = frame.name.startswith(("Py", "_Py", "pymain", "pyrun", "run_", "do_call", "cfunction"))
    return known or "libpython" in frame.where
