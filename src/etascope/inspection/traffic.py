"""The bytes that operators move, from the tensors they are called with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WRITES_ONLY = (
    "copy_",
    "fill_",
    "zero_",
)  # what they change they do not read; nor do _foreach_ ones
REPEATS = 15


class Traffic(NamedTuple):
    """An operator's call: what it reads and writes of memory, at the least, in bytes."""

    operator: str
    read: int
    written: int


class TrafficLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Logs the traffic of every operator.

    Every tensor that an operator takes is read once and every new one written once; what it changes
    in place is both. Views and empty memory move nothing. What a kernel keeps in a cache and what
    it reads twice is not known here: it is the least that the operator can do with.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Traffic] = []
        self._touched: dict[int, torch.Tensor] = {}

    @property
    def footprint(self) -> int:
        """The bytes of all tensors that were read or written, each once."""
        return _bytes(self._touched.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and log it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace != "profiler":
            self.calls.append(_traffic(func, args, kwargs, result))
            self._touched |= {id(t): t for t in _tensors((args, list(kwargs.values()), result))}
        return result


def _traffic(func: Any, args: Any, kwargs: Any, result: Any) -> Traffic:
    name = func._overloadpacket.__name__
    taken: dict[int, torch.Tensor] = {}
    changed: dict[int, torch.Tensor] = {}
    for index, declared in enumerate(func._schema.arguments):
        given = args[index] if index < len(args) else kwargs.get(declared.name)
        alias = declared.alias_info
        writes = alias is not None and alias.is_write
        if declared.name == "grads" and kwargs.get("grad_scale") is None:
            writes = False  # a fused optimizer changes gradients only to unscale them
        into = changed if writes else taken
        into |= {id(t): t for t in _tensors(given)}
    made = {id(t): t for t in _tensors(result)}
    seen = {**taken, **changed}
    new = [t for key, t in made.items() if key not in seen]
    if func.is_view or name.startswith(("empty", "new_empty")):
        return Traffic(func._schema.name, 0, 0)
    reread = {} if name.removeprefix("_foreach_") in WRITES_ONLY else changed
    read = _bytes({**taken, **reread}.values())
    return Traffic(func._schema.name, read, _bytes(changed.values()) + _bytes(new))


def copy_bandwidth(size: int, device: torch.device) -> float:
    """Bytes a second that copying moves, reads and writes counted, between `size` bytes in all.

    The median of fifteen, with the threads that torch has now. What fits into a cache is copied out
    of it, so compare with a step that touches as much.
    """
    count = max(1, size // 8)
    source = torch.ones(count, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    return 8 * count / timed(lambda: target.copy_(source), device)


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """The median of fifteen times that `work` takes, in seconds; it is run once before."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.get_device_module(device).synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
