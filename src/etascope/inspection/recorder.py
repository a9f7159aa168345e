"""Records what a module runs, without changing it: one node a torch function, one group a module.

A torch function is what user code calls: `F.conv2d`, `x + y`, `x.view(...)`. A mode sees each of
them, wherever it is called and whatever branch was taken; inside, another mode logs the ATen
operators that it ran. Hooks on the modules tell where in the network it was called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from etascope.inspection.graph import Edge, Graph, Node, Parameter
from etascope.inspection.operators import (
    Call,
    OperatorLog,
    describe,
    name_of,
    same_memory,
    tensors,
    version,
)
from etascope.inspection.simplify import dissolved, unique

LEFT = "What leaves torch here cannot be followed; what comes back is a constant."
LEAVING = ("numpy", "array", "tolist")


class Called(NamedTuple):
    """The tensors of a recorded call, kept alive, and the autograd functions of what it made."""

    given: list[torch.Tensor]
    made: list[torch.Tensor]
    functions: list[Any]


class Recorder(TorchFunctionMode):
    """Builds a graph while it is entered.

    Args:
        model: whose parameters, buffers and modules are known by name.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.log = OperatorLog(self._hear)
        self.nodes: list[Node] = []
        self.scopes = [""]
        self.kinds: dict[str, str] = {}  # of the groups, in order of first appearance
        self.called: dict[str, Called] = {}  # by node
        self._leaves: set[str] = set()  # groups of modules without modules inside
        self._names = {""}
        self._makers: dict[int, tuple[torch.Tensor, tuple[str, ...]]] = {}
        self._parameters: dict[int, tuple[torch.Tensor, Parameter]] = {
            id(p): (p, Parameter(name, tuple(p.shape))) for name, p in model.named_parameters()
        }
        self._buffers = {id(b): b for b in model.buffers()}
        self._modules = {id(m): name for name, m in model.named_modules()}
        self._open: list[tuple[nn.Module, str]] = []
        self._consumed = 0
        self._outside = False  # of any torch function, while recording
        self._model = model

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what runs inside; fused fast paths, which hide what they compute, are off."""
        with ExitStack() as stack:
            for module in self._model.modules():
                with suppress(RuntimeError):  # TorchScript may refuse hooks: it is one node then
                    stack.callback(module.register_forward_pre_hook(self._enter).remove)
                    leave = module.register_forward_hook(self._leave, always_call=True)
                    stack.callback(leave.remove)
            fast = torch.backends.mha.get_fastpath_enabled()
            stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
            torch.backends.mha.set_fastpath_enabled(False)
            enabled = torch.backends.mkldnn.enabled
            stack.callback(setattr, torch.backends.mkldnn, "enabled", enabled)
            torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(self.log)
            stack.enter_context(self)
            stack.enter_context(self._listening(True))
            yield

    @contextmanager
    def _listening(self, outside: bool) -> Iterator[None]:
        before, self._outside = self._outside, outside
        try:
            yield
        finally:
            self._outside = before

    def _hear(self, operator: str, given: Any, result: Any) -> None:
        """Record an operator that no torch function ran, such as one of TorchScript, by itself."""
        if self._outside:
            self.add(operator, tensors(given), tensors(result))

    @contextmanager
    def scope(self, name: str, kind: str) -> Iterator[None]:
        """Have what runs inside stand in the group `name`, whatever group is open."""
        self.kinds.setdefault(name, kind)
        self._names.add(name)
        self.scopes.append(name)
        try:
            yield
        finally:
            self.scopes.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function and record it if it computed anything."""
        given = tensors((args, kwargs or {}))
        versions = [version(tensor) for tensor in given]
        start = len(self.log.calls)
        with self._listening(False):
            result = func(*args, **(kwargs or {}))
        changed = [t for t, v in zip(given, versions, strict=True) if version(t) != v]
        returned = tensors(result)
        ran = len(self.log.calls) > start
        name = name_of(func)
        if not ran and name in ("data", "grad"):
            for tensor in returned:
                self._alias(tensor, given[0])
            return result
        made = [t for t in returned if not (self.makers(t) or self._is_own(t))]
        bookkeeping = changed and all(id(t) in self._buffers for t in [*given, *returned])
        if (ran or made or changed or name in LEAVING) and not bookkeeping:
            note = LEFT if name in LEAVING else ""
            self.add(name, given, [*made, *changed], note=note)
        return result

    def add(
        self,
        op: str,
        given: Iterable[torch.Tensor],
        made: Iterable[torch.Tensor],
        *,
        name: str | None = None,
        note: str = "",
    ) -> str:
        """Record a node; what the log holds since the last one is what it ran.

        Args:
            op: what it does.
            given: the tensors that it read.
            made: those that it made or changed.
            name: how it is called in its group; `op` if None.
            note: see `Node`.

        Returns:
            The node's name.
        """
        given, made = list(given), list(made)
        edges = self._edges(given)
        calls = self.take()
        own = self._unique(name or op)
        node = Node(
            name=own,
            op=op,
            inputs=edges,
            outputs=tuple(map(describe, made)),
            parameters=tuple(self._parameters[id(t)][1] for t in given if self._is_parameter(t)),
            flops=sum(call.flops for call in calls),
            operators=tuple(call.operator for call in calls),
            note=note,
        )
        self.nodes.append(node)
        self.called[own] = Called(given, made, [tensor.grad_fn for tensor in made])
        for tensor in made:
            self._made(tensor, own)
        return own

    def knows(self, tensor: torch.Tensor, makers: tuple[str, ...]) -> None:
        """Take a tensor for one that the nodes `makers` made."""
        self._makers[id(tensor)] = (tensor, makers)

    def makers(self, tensor: torch.Tensor) -> tuple[str, ...]:
        """The nodes that made a tensor; none if it is unknown."""
        return self._makers.get(id(tensor), (tensor, ()))[1]

    def take(self) -> list[Call]:
        """What the log holds since it was last taken."""
        calls = self.log.calls[self._consumed :]
        self._consumed += len(calls)
        return calls

    def parameters(self) -> list[tuple[torch.Tensor, Parameter]]:
        """The model's parameters, and how they are described."""
        return list(self._parameters.values())

    def mirror(self, name: str, group: str) -> None:
        """Have the groups that a node stands in inside another group, too."""
        scopes = name.split("/")[:-1]
        for depth in range(1, len(scopes) + 1):
            inner = "/".join(scopes[:depth])
            self.kinds.setdefault(f"{group}/{inner}", self.kinds[inner])
            if inner in self._leaves:
                self._leaves.add(f"{group}/{inner}")

    def graph(self, name: str) -> Graph:
        """What was recorded. A module that ran one function and no module is that node."""
        if self.nodes:
            self.nodes[-1] = _with_calls(self.nodes[-1], self.take())  # bookkeeping at the end
        return dissolved(name, self.nodes, self.kinds, self._leaves)

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        inner = next(module.children(), None) is not None
        if module is self._model:
            self.scopes.append("")
            self._open.append((module, ""))
            return
        full = self._modules[id(module)]
        outer = self._modules[id(self._open[-1][0])] if self._open else ""
        own = full.removeprefix(f"{outer}.") if outer else full
        group = self._unique(own)
        self.kinds[group] = type(module).__name__
        if not inner:
            self._leaves.add(group)
        self.scopes.append(group)
        self._open.append((module, group))

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self._open or self._open[-1][0] is not module:
            return
        self._open.pop()
        self.scopes.pop()

    def _edges(self, given: list[torch.Tensor]) -> tuple[Edge, ...]:
        edges: dict[Edge, None] = {}
        for tensor in given:
            if self._is_own(tensor) and not self.makers(tensor):
                continue
            makers = self.makers(tensor) or self._twin(tensor) or (self._constant(tensor),)
            edges |= {Edge(maker, describe(tensor)): None for maker in makers}
        return tuple(edges)

    def _twin(self, tensor: torch.Tensor) -> tuple[str, ...]:
        """Who made a tensor that another Python object stands for."""
        for other, makers in reversed(self._makers.values()):
            if same_memory(other, tensor) and other.shape == tensor.shape:
                return makers
        return ()

    def _constant(self, tensor: torch.Tensor) -> str:
        """Record a tensor that nothing recorded made."""
        own = self._unique("constant")
        self.nodes.append(Node(own, "constant", outputs=(describe(tensor),)))
        self.knows(tensor, (own,))
        return own

    def _made(self, tensor: torch.Tensor, maker: str) -> None:
        """Take note of a tensor, and of all that see its change if it is an old one's memory."""
        if not self._is_own(tensor):
            if id(tensor) in self._makers:
                for other, _ in list(self._makers.values()):
                    if same_memory(other, tensor, anywhere=True):
                        self.knows(other, (maker,))
            self.knows(tensor, (maker,))

    def _alias(self, tensor: torch.Tensor, source: torch.Tensor) -> None:
        if self._is_parameter(source) and tensor is not source.grad:
            self._parameters[id(tensor)] = (tensor, self._parameters[id(source)][1])
        elif self.makers(source) and not self.makers(tensor):
            self.knows(tensor, self.makers(source))

    def _is_parameter(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._parameters

    def _is_own(self, tensor: torch.Tensor) -> bool:
        """Whether it belongs to the model; a node's work is not drawn for it."""
        return id(tensor) in self._parameters or id(tensor) in self._buffers

    def _unique(self, own: str) -> str:
        scope, own = self.scopes[-1], own.replace("/", ".")  # "/" is for scopes
        name = unique(f"{scope}/{own}" if scope else own, self._names)
        self._names.add(name)
        return name


def _with_calls(node: Node, calls: list[Call]) -> Node:
    operators = (*node.operators, *(call.operator for call in calls))
    return replace(node, operators=operators, flops=node.flops + sum(c.flops for c in calls))
