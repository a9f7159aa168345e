"""What usually stands behind an exception in a user's part, shown by trying what would work.

A remedy is named only where the part ran with it: a batch cast to the model's type, labels that
begin at 0, a criterion that is given outputs and targets. Where nothing of that helps, the
message says what the batch holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from inspect import signature
from typing import Any

import torch
from torch import nn

from etascope.errors import RAISED
from etascope.problems.contents import Batch, tensors_of

Run = Callable[[Batch], Any]
# The names that functions of outputs and targets give to their arguments.
OTHERS = frozenset({"y_true", "y_pred", "output", "outputs", "pred", "preds", "input", "target"})


def remedy(part: str, function: Any, model: nn.Module, batch: Batch, run: Run) -> str:
    """What to do about an exception of a loss or metric, to stand behind its text.

    Args:
        part: `loss` or `metric`, as it is called in the message.
        function: the user's own.
        model, batch: what it was given.
        run: runs it on another batch, as it ran when it raised.
    """
    with suppress(*RAISED):
        for answer in (_criterion(part, function, model, batch), _mended(model, batch, run)):
            if answer is not None:
                return answer
    called = ""
    with suppress(*RAISED):
        names = {*list(signature(function).parameters)[:2]}
        called = (
            f"; the {part} of a problem is called with (model, batch)" if names & OTHERS else ""
        )
    return f"{called}; the batch is {describe(batch)}"


def describe(batch: Batch) -> str:
    """A batch in words: its kind, and the type and shape of its tensors.

    >>> describe((torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64)))
    'a tuple of float32 [8, 2] and int64 [8]'
    """
    tensors = [f"{_dtype(t)} {list(t.shape)}" for t in tensors_of(batch)]
    if isinstance(batch, torch.Tensor):
        return f"a tensor: {tensors[0]}"
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} of {', '.join(map(str, batch))}: {', '.join(tensors)}"
    if not tensors:
        return f"a {type(batch).__name__} without a tensor"
    listed = " and ".join(filter(None, (", ".join(tensors[:-1]), tensors[-1])))
    return f"a {type(batch).__name__} of {listed}"


def where(error: BaseException) -> str:
    """The last line of the user's own that an exception passed, to stand behind its text."""
    found, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        inside = any(f"/{name}/" in file for name in ("site-packages", "etascope", "lib"))
        if not inside and not file.startswith("<"):
            found = f" (in {file.rpartition('/')[2]}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return found


def _criterion(part: str, function: Any, model: nn.Module, batch: Batch) -> str | None:
    """The remedy where the part wants outputs and targets in the place of model and batch."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return None
    name = type(function).__name__ if isinstance(function, nn.Module) else ""
    name = name or getattr(function, "__name__", part)
    name = part if name == "<lambda>" else name
    with suppress(*RAISED), torch.no_grad():
        found = function(model(batch[0]), batch[1])
        if isinstance(found, (torch.Tensor, float, int)):
            return (
                f"; {name} takes (output, target), and the {part} of a problem is called with "
                f"(model, batch): pass lambda model, batch: {name}(model(batch[0]), batch[1])"
            )
    return None


def _mended(model: nn.Module, batch: Batch, run: Run) -> str | None:
    """The first change to the batch with which the part runs, in words."""
    for words, other in _changes(model, batch):
        with suppress(*RAISED):
            run(other)
            return f"; {words}"
    return None


def _changes(model: nn.Module, batch: Batch) -> Iterator[tuple[str, Batch]]:
    """Changes to a batch that would mend a common mistake, each with its words."""
    tensors = list(tensors_of(batch))
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    cast = f".to(torch.{str(kind).removeprefix('torch.')})"
    wide = [t for t in tensors if t.is_floating_point() and t.dtype != kind]
    whole = [t for t in tensors if not t.is_floating_point() and not t.is_complex()]
    if wide:
        words = (
            f"the batch holds {_dtype(wide[0])} and the weights are {_dtype_name(kind)}: cast the "
            f"data with {cast}, or the model with .to(torch.{_dtype_name(wide[0].dtype)})"
        )
        yield words, _replaced(batch, {id(t): t.to(kind) for t in wide})
    for t in whole:
        words = (
            f"the batch holds {_dtype(t)} {list(t.shape)} where numbers are wanted: cast it {cast}"
        )
        yield words.replace("cast it ", "cast it with "), _replaced(batch, {id(t): t.to(kind)})
    for t in tensors:
        if t.is_floating_point():
            words = f"the batch holds {_dtype(t)} {list(t.shape)} where classes are wanted: cast it"
            yield f"{words} with .long()", _replaced(batch, {id(t): t.long()})
    for t in whole:
        if t.numel() and t.dtype != torch.bool:
            low, high = int(t.min()), int(t.max())
            words = f"the labels go from {low} to {high} in this batch, and classes count from 0"
            if low > 0:
                yield f"{words}: subtract {low}", _replaced(batch, {id(t): t - low})
            if low >= 0:
                share = torch.zeros_like(t)
                yield (
                    f"{words}: give the model {high + 1} outputs",
                    _replaced(batch, {id(t): share}),
                )
            words = f"the labels go from {low} to {high} in this batch, and {low} is no class"
            shifted = torch.where(t < 0, -100, t)
            yield (
                f"{words}: pass ignore_index={low} if it is to be left out",
                _replaced(batch, {id(t): shifted}),
            )
    for t in tensors:
        words = f"the batch holds {_dtype(t)} {list(t.shape)}"
        if t.ndim > 1 and t.shape[-1] == 1:
            mended = f"{words}: take the last axis off with .squeeze(-1)"
            yield mended, _replaced(batch, {id(t): t.squeeze(-1)})
        if t.ndim:
            mended = f"{words} where {[*t.shape, 1]} is wanted: use .unsqueeze(-1)"
            yield mended, _replaced(batch, {id(t): t.unsqueeze(-1)})


def _replaced(batch: Batch, others: Mapping[int, torch.Tensor]) -> Batch:
    """The batch with other tensors in the place of some."""
    if isinstance(batch, torch.Tensor):
        return others.get(id(batch), batch)
    if isinstance(batch, dict):
        return {key: _replaced(value, others) for key, value in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(_replaced(value, others) for value in batch)
    return batch


def _dtype(tensor: torch.Tensor) -> str:
    return _dtype_name(tensor.dtype)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
