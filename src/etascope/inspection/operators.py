"""What runs below a torch function: ATen operators, and the tensors that they share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from etascope.inspection.graph import Tensor

REFLECTED = ("radd", "rsub", "rmul", "rmatmul", "rtruediv", "rdiv", "rfloordiv", "rmod", "rpow")


class Call(NamedTuple):
    """An ATen operator that ran."""

    operator: str
    flops: int


class OperatorLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Logs every ATen operator with its floating point operations, and tells who wants to know."""

    def __init__(self, tell: Callable[[str, Any, Any], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self._tell = tell

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and log it."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            result = func(*args, **kwargs)
        packet = func._overloadpacket
        if func.namespace == "profiler":  # marks of the profiler, which compute nothing
            return result
        count = flop_registry.get(packet)
        flops = 0 if count is None else int(count(*args, **kwargs, out_val=result))
        self.calls.append(Call(str(packet), flops))
        self._tell(packet.__name__, (args, kwargs), result)
        return result


def tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors in nested containers, each once."""
    return list({id(t): t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)}.values())


def describe(tensor: torch.Tensor) -> Tensor:
    """Shape and type as a graph holds them."""
    return Tensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def version(tensor: torch.Tensor) -> int:
    """How often the tensor was changed in place; inference tensors do not count."""
    return -1 if tensor.is_inference() else tensor._version


def same_memory(one: torch.Tensor, other: torch.Tensor, *, anywhere: bool = False) -> bool:
    """Whether two tensors begin at the same place, or share a storage at all."""
    if one is other:
        return True
    with suppress(RuntimeError, NotImplementedError):  # a sparse tensor has no storage
        if anywhere:
            return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() != 0
        return one.data_ptr() == other.data_ptr() != 0
    return False


def name_of(func: Callable[..., Any]) -> str:
    """How a torch function is called: `add` for `Tensor.__radd__`, `T` for the property."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        owner = getattr(func, "__self__", None)
        name = getattr(owner, "__name__", getattr(getattr(owner, "fget", None), "__name__", name))
    elif name.startswith("__"):
        name = name.strip("_")
        name = name[1:] if name in REFLECTED else name
    return name.strip("_") or name
