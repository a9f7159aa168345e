"""Captures a computation graph by running a module once, on a copy."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.nn import UninitializedParameter
from torch.optim import Optimizer

from etascope.errors import RAISED, EtascopeError, UsageError, text_of
from etascope.inspection.backward import record_gradients
from etascope.inspection.graph import Graph, Node
from etascope.inspection.recorder import Recorder
from etascope.plan import Plan
from etascope.problems.copies import copied
from etascope.problems.problem import Problem
from etascope.randomness import seed_everything, undisturbed

CLASS_LOSSES = ("cross_entropy", "nll_loss")


def capture(module: nn.Module, inputs: Any, name: str | None = None) -> Graph:
    """The computation graph of one forward pass, run on copies in the modes the module is in.

    Branches that depend on data are the ones that were taken. Nested modules are nested groups; a
    module that is called twice is two groups with the same parameters.

    Args:
        module: what is run. Neither it nor any random state is changed.
        inputs: its arguments: a tensor, a tuple or list of positional ones, or a mapping of names.
        name: how the graph is called; the module's class if None.

    Raises:
        UsageError: if the module cannot be copied, if it raises, or if it computes nothing.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        >>> [node.name for node in capture(model, torch.zeros(5, 3)).nodes]
        ['input', 'linear', 'relu', 'output']

    Source: torch's function and dispatch modes (torch.overrides, torch.utils._python_dispatch).
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"what is to be captured is a {type(module).__name__}, no nn.Module")
    device = next((t.device for t in module.parameters()), torch.device("cpu"))
    kind = type(module).__name__
    with undisturbed(device):
        model = _copied(module)
        args, kwargs = _arguments(_copied(inputs))
        if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
            with _told(f"the forward of {kind}"):
                model(*args, **kwargs)  # a lazy module makes its parameters when it first runs
        recorder = Recorder(model)
        seed_everything(device, 0, "step", 1)
        for label, tensor in _labelled_inputs(model, args, kwargs):
            _add_end(recorder, "input", label, made=[tensor])
        with recorder.recording(), _told(f"the forward of {kind}"):
            output = model(*args, **kwargs)
        found = list(_labelled(output))
        for label, tensor in found:
            _add_end(recorder, "output", label if len(found) > 1 else "", given=[tensor])
    if all(node.op in ("input", "output") for node in recorder.nodes):
        raise UsageError(f"the forward of {kind} computes nothing with tensors")
    return recorder.graph(name or kind)


def capture_problem(
    problem: Problem, optimizer: str | Callable[[nn.Module, float], Optimizer] = "adam"
) -> Graph:
    """The graph of a training step: the network, its loss, the gradients, and the update.

    The step is the second one of seed 0 at the rate 0.001, on copies; the first has made what the
    optimizer keeps. Above the network stand `prediction` (the softmax, where the loss is one of
    class labels) and `loss`; `train_step` holds `gradients`, where each node is what the backward
    pass runs for the node of that name, and the functions that the optimizer's step calls.

    Args:
        problem: what is trained.
        optimizer: a registered name, or a factory `(model, lr) -> torch.optim.Optimizer`.

    Raises:
        UsageError: for an optimizer that does not exist, or a part of the problem that raises.

    Example:
        >>> import etascope as es
        >>> graph = capture_problem(es.get_problem("mnist-cnn"))
        >>> [group.name for group in graph.groups if "/" not in group.name]
        ['layer1', 'layer2', 'fc_layer', 'loss', 'prediction', 'train_step']
    """
    plan = Plan(optimizer=optimizer, steps=2)
    with undisturbed(problem.torch_device):
        model = problem.make_model(0)
        made = plan.make_optimizer(model, 1e-3)
        batches = problem.batches(0, 0)
        with _told("the training step"):
            first = next(batches)
            problem.loss(model, first).backward()  # type: ignore[no-untyped-call]
            made.step()
            made.zero_grad()
            batch = next(batches, first)
            recorder = _record_step(problem, model, made, batch, _word(optimizer, made))
    return recorder.graph(problem.name)


def _record_step(
    problem: Problem, model: nn.Module, optimizer: Optimizer, batch: Any, word: str
) -> Recorder:
    recorder = Recorder(model)
    seed_everything(problem.torch_device, 0, "step", 2)
    found = list(_labelled(batch))
    for index, (label, tensor) in enumerate(found):
        plain = {0: "input", 1: "target"} if isinstance(batch, (tuple, list)) else {}
        name = plain.get(index, f"input_{label}" if label else "input")
        _add_end(recorder, "input", "", made=[tensor], name=name)
    with recorder.recording(), recorder.scope("loss", "loss"):
        loss = problem.loss(model, batch)
    forward = list(recorder.nodes)
    logits = _logits(recorder, forward)
    if logits is not None:
        with recorder.recording(), recorder.scope("prediction", "prediction"):
            logits.softmax(dim=-1)
    with recorder.scope("train_step", "train step"):
        with recorder.scope("train_step/gradients", "gradients"):
            record_gradients(recorder, forward, loss)
        with recorder.recording(), recorder.scope(f"train_step/{word}", "update"):
            _add_state(recorder, optimizer)
            optimizer.step()
    return recorder


def _add_state(recorder: Recorder, optimizer: Optimizer) -> None:
    """Record what the optimizer keeps for the parameters: a node for each kind of it."""
    kept: dict[str, list[torch.Tensor]] = {}
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                kept.setdefault(str(name), []).append(value)
    for name, tensors in kept.items():
        recorder.add("state", [], tensors, name=name)


def _word(optimizer: Any, made: Optimizer) -> str:
    """How the group of the update is called."""
    return optimizer if isinstance(optimizer, str) else type(made).__name__


def _logits(recorder: Recorder, forward: list[Node]) -> torch.Tensor | None:
    """What a loss of class labels was computed from."""
    for node in forward:
        if node.op in CLASS_LOSSES:
            wide = [
                t for t in recorder.called[node.name].given if t.is_floating_point() and t.ndim > 1
            ]
            return wide[0].detach() if wide and node.op == "cross_entropy" else None
    return None


def _add_end(
    recorder: Recorder,
    op: str,
    label: str,
    *,
    given: Sequence[torch.Tensor] = (),
    made: Sequence[torch.Tensor] = (),
    name: str | None = None,
) -> None:
    recorder.add(op, given, made, name=name or (f"{op}_{label}" if label else op))


def _copied(given: Any, made: dict[int, torch.Tensor] | None = None) -> Any:
    """A deep copy; a tensor that has a history is detached from it.

    A tensor that is given twice stays one: attention on `(x, x, x)` runs other operators than on
    three tensors that are equal.
    """
    made = {} if made is None else made
    if isinstance(given, torch.Tensor):
        if id(given) not in made:
            made[id(given)] = given.detach().clone().requires_grad_(given.requires_grad)
        return made[id(given)]
    if isinstance(given, Mapping) and type(given) is dict:
        return {key: _copied(value, made) for key, value in given.items()}
    if type(given) in (tuple, list):
        return type(given)(_copied(value, made) for value in given)
    if isinstance(given, nn.Module):
        with suppress(UsageError):  # what refers to the original may do so in a picture
            return copied(given, {"": given})
    try:
        return copy.deepcopy(given)
    except Exception as error:
        raise UsageError(
            f"the {type(given).__name__} cannot be copied: {_sentence(error)}"
        ) from error


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _labelled_inputs(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[str, torch.Tensor]]:
    """The tensors among the arguments, by the names that `forward` has for them."""
    try:
        bound: dict[str, Any] = dict(
            inspect.signature(model.forward).bind(*args, **kwargs).arguments
        )
    except (TypeError, ValueError):
        bound = {str(index): value for index, value in enumerate(args)} | kwargs
    first: dict[int, tuple[str, torch.Tensor]] = {}  # a tensor given twice is one input
    for key, value in bound.items():
        for label, tensor in _labelled(value, str(key)):
            first.setdefault(id(tensor), (label, tensor))
    found = list(first.values())
    return [("", found[0][1])] if len(found) == 1 else found


def _labelled(tree: Any, label: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested containers, with the way to each."""
    if isinstance(tree, torch.Tensor):
        yield label, tree
        return
    items: list[tuple[Any, Any]] = []
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, (tuple, list)):
        items = list(enumerate(tree))
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        items = [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    for key, value in items:
        yield from _labelled(value, f"{label}_{key}" if label else str(key))


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say in one sentence what raised."""
    try:
        yield
    except EtascopeError:
        raise
    except RAISED as error:
        raise UsageError(f"{what} raised {_sentence(error)}") from error


def _sentence(error: BaseException) -> str:
    return text_of(error, 300)
