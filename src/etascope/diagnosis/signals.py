"""What is looked for in a live model when a trial goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn


def all_finite(model: nn.Module) -> bool:
    """Whether every weight of the model is finite.

    >>> all_finite(nn.Linear(2, 2))
    True
    """
    parameters = [p.detach() for p in model.parameters() if _countable(p)]
    # What is not finite makes the sum so, which is quick to take; the sum alone may overflow.
    return all(bool(torch.isfinite(p.sum()) or torch.isfinite(p).all()) for p in parameters)


def first_non_finite(model: nn.Module, run: Callable[[], Any]) -> tuple[str, str] | None:
    """The first module, in forward order, that is not finite, and what of it: weights or output.

    Args:
        model: the module to watch.
        run: runs the forward pass once.

    Returns:
        (name, "weights" or "output"), the name being that of `named_modules`; None if every
        module is finite (then it is the loss itself that is not).
    """
    found: list[tuple[str, str]] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if found:
                return
            own = module.parameters(recurse=False)
            if not all(bool(torch.isfinite(p).all()) for p in own if _countable(p)):
                found.append((name, "weights"))
            elif not all(bool(torch.isfinite(t).all()) for t in _tensors(output)):
                found.append((name, "output"))

        return hook

    named = [(name or type(model).__name__, module) for name, module in model.named_modules()]
    handles = [module.register_forward_hook(watch(name)) for name, module in named]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _countable(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if _countable(value):
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)
