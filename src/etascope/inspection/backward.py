"""The backward pass of a recorded forward: one node for each node that a gradient goes through.

autograd keeps a graph of its own. Each of its functions was made by one recorded node, found by
walking back from what that node returned; a hook before each tells whose operators follow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from etascope.inspection.graph import Edge, Node, Tensor
from etascope.inspection.operators import Call
from etascope.inspection.recorder import Recorder


def record_gradients(recorder: Recorder, forward: list[Node], loss: torch.Tensor) -> None:
    """Run the backward pass of `loss` and record it in the group that is open.

    What the forward recorded as `layer1/conv2d` becomes `<group>/layer1/conv2d`. It reads the
    gradients that come from the nodes after it; what it reads of the forward is not drawn.
    """
    ran: dict[str, list[Call]] = {}
    current = [recorder.makers(loss)[0]]

    def switch(owner: str) -> None:
        ran.setdefault(current[0], []).extend(recorder.take())
        current[0] = owner

    handles = [
        function.register_prehook(lambda grads, owner=owner: switch(owner))
        for function, owner in _owners(recorder, forward).values()
    ]
    try:
        with recorder.log:
            loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
    switch("")
    _place(recorder, {node.name: node for node in forward}, ran, loss)


def _owners(recorder: Recorder, forward: Iterable[Node]) -> dict[int, tuple[Any, str]]:
    """autograd's functions, each with the recorded node that made it."""
    owners: dict[int, tuple[Any, str]] = {}
    for node in forward:
        waiting = [f for f in recorder.called[node.name].functions if f is not None]
        while waiting:
            function = waiting.pop()
            if id(function) not in owners:
                owners[id(function)] = (function, node.name)
                waiting.extend(f for f, _ in function.next_functions if f is not None)
    return owners


def _place(
    recorder: Recorder, forward: dict[str, Node], ran: dict[str, list[Call]], loss: torch.Tensor
) -> None:
    """Record the nodes, and that they made the gradients of the parameters."""
    group = recorder.scopes[-1]
    flows: dict[str, list[Edge]] = {name: [] for name in ran}
    for name in ran:
        for edge in forward[name].inputs:
            if edge.source in flows:
                flows[edge.source].append(Edge(f"{group}/{name}", edge.tensor))
    last = recorder.makers(loss)[0]
    flows[last].insert(0, Edge(last, Tensor(tuple(loss.shape), _dtype(loss))))
    users: dict[str, list[str]] = {}
    for name, calls in ran.items():
        node = forward[name]
        recorder.mirror(name, group)
        passed_on = [e.tensor for e in node.inputs if e.source in ran]
        recorder.nodes.append(
            Node(
                name=f"{group}/{name}",
                op=f"{node.op}_backward",
                inputs=tuple(flows[name]),
                outputs=(*passed_on, *(Tensor(p.shape, _dtype(loss)) for p in node.parameters)),
                parameters=node.parameters,
                flops=sum(call.flops for call in calls),
                operators=tuple(call.operator for call in calls),
            )
        )
        for parameter in node.parameters:
            users.setdefault(parameter.name, []).append(f"{group}/{name}")
    for tensor, parameter in recorder.parameters():
        if tensor.grad is not None and parameter.name in users:
            recorder.knows(tensor.grad, tuple(users[parameter.name]))


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
