"""Outputs and targets that broadcast against each other: `[B, 1]` and `[B]` make `[B, B]`.

Nothing raises then, and every output is compared with every target, so that only the mean of the
targets can be learned. It is found by watching the functions of torch that a loss calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from etascope.errors import RAISED, UsageError
from etascope.problems.contents import Batch, tensors_of
from etascope.problems.problem import Problem, evaluating
from etascope.randomness import seed_everything

Shapes = tuple[tuple[int, ...], tuple[int, ...]]  # of what comes from the model, and from the data
# Losses that expand their two arguments by themselves and give one number.
EXPANDING = frozenset(
    {F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.poisson_nll_loss, F.kl_div}
)


def check_shapes(problem: Problem, model: nn.Module, batch: Batch, held_out: Batch) -> None:
    """Make sure that outputs and targets do not broadcast against each other.

    Raises:
        UsageError: with both shapes and what to write instead.
    """
    if problem.owns_step:
        return
    watched = [("loss", problem.loss, batch), ("loss", problem.loss, held_out)]
    if problem.metric is not None:
        watched.append(("metric", problem.metric, held_out))
    for part, function, given in watched:
        found = _crossing(problem, model, function, given)
        if found is None:
            continue
        # A length that happens to equal the number of examples does not shrink with it.
        again = _crossing(problem, model, function, shortened(given))
        if again is not None or min(map(len, found)) > 1:
            raise UsageError(describe(found, part))


def _crossing(
    problem: Problem, model: nn.Module, function: Callable[[nn.Module, Batch], Any], batch: Batch
) -> Shapes | None:
    """The shapes that a loss or a metric crosses; None too where it cannot run under watch."""
    crossings = Crossings(model, batch)
    seed_everything(problem.torch_device, 0, "check")
    marking = _marking(model, crossings)
    with suppress(*RAISED), evaluating(model), torch.enable_grad(), marking, crossings:
        function(model, batch)
    return crossings.found


@contextmanager
def _marking(model: nn.Module, crossings: Crossings) -> Iterator[None]:
    hook = model.register_forward_hook(lambda module, inputs, output: crossings.mark(output))
    try:
        yield
    finally:
        hook.remove()


class Crossings(TorchFunctionMode):
    """Notes where something computed by the model meets something of the batch crosswise.

    What is computed from a parameter or an output of the model is the model's, what is computed
    from the batch alone is the data's. Only shapes that differ by one last axis of length 1 count:
    who means every pair writes that axis on both sides, as in `a[:, None] - b[None, :]`.

    Args:
        model: whose parameters and outputs are the model's.
        batch: whose tensors are the data's.

    Attributes:
        found: the shapes of the first such meeting; None if there was none.
    """

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        super().__init__()
        self.found: Shapes | None = None
        self._model, self._data = _Tensors(model.parameters()), _Tensors(tensors_of(batch))

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = list(_tensors((args, kwargs or {})))
        result = func(*args, **(kwargs or {}))
        made = list(_tensors(result))
        if self.found is None and len(given) >= 2:
            self.found = self._crossing(func, given[:2], made)
        if any(t in self._model for t in given):
            self._model.add(made)
        elif any(t in self._data for t in given):
            self._data.add(made)
        return result

    def mark(self, output: Any) -> None:
        """Note that the model has returned `output`."""
        self._model.add(_tensors(output))

    def _crossing(
        self, func: Any, pair: list[torch.Tensor], made: list[torch.Tensor]
    ) -> Shapes | None:
        ours = [t for t in pair if t in self._model]
        theirs = [t for t in pair if t in self._data and t not in self._model]
        if len(ours) != 1 or len(theirs) != 1:
            return None
        shapes = tuple(ours[0].shape), tuple(theirs[0].shape)
        short, long = sorted(shapes, key=len)
        if long != (*short, 1) or not short or short[-1] < 2:
            return None
        try:
            crossed = _crossed(shapes)
        except RuntimeError:
            return None
        grown = any(tuple(t.shape) == crossed for t in made)
        return shapes if grown or func in EXPANDING else None


class _Tensors:
    """A set of tensors by identity, which keeps none of them alive."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._known: dict[int, ref[torch.Tensor]] = {}
        self.add(tensors)

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        self._known.update((id(t), ref(t)) for t in tensors)

    def __contains__(self, tensor: torch.Tensor) -> bool:
        known = self._known.get(id(tensor))  # of one that is gone another may have the id
        return known is not None and known() is tensor


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in arguments or results, depth first."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)


def _crossed(shapes: Shapes) -> tuple[int, ...]:
    """The shape that two make together; raises RuntimeError where they make none."""
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def shortened(batch: Batch) -> Batch:
    """The batch without its last example, where its parts are tensors of one length.

    >>> [t.shape[0] for t in shortened((torch.zeros(5, 2), torch.zeros(5)))]
    [4, 4]
    """
    if isinstance(batch, torch.Tensor):
        return batch[:-1] if batch.ndim and len(batch) > 2 else batch
    if isinstance(batch, dict):
        return {key: shortened(value) for key, value in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(shortened(value) for value in batch)
    return batch


def describe(shapes: Shapes, part: str) -> str:
    """What to say of a crossing in a part of the problem, and what to write instead."""
    ours, theirs = (list(shape) for shape in shapes)
    crossed = list(_crossed(shapes))
    longer = len(ours) > len(theirs)
    output = f"model(...).{'squeeze' if longer else 'unsqueeze'}(-1)"
    target = f"target.{'unsqueeze' if longer else 'squeeze'}(-1)"
    return (
        f"the {part} sets what the model gave, of shape {ours}, against data of shape {theirs}, "
        f"which makes {crossed}, each output against every target; use {output} or {target}, or "
        "output[:, None] and target[None, :] if every pair is meant"
    )
