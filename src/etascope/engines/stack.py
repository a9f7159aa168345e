"""Models of one architecture as one program: their tensors are slices of common ones.

Axis order: [model, ...]. The forward pass runs under `torch.vmap`, the backward pass is autograd's
own. Every parameter of a model stays the object that its optimizer holds, but its memory is a
slice of the common tensor and its gradient one of the common gradient; so any optimizer, clipping
and schedule works on it, and a model can leave the stack at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from etascope.problems.contents import Batch
from etascope.trial import Trial

MODEL = "model."  # prefix of the names of tensors in `_Loss`


class Stack:
    """Trials in lock step whose models are trained as one program.

    Their parameters and buffers move to common memory; what is in it stays as it is.

    Args:
        trials: of one seed, at one step, begun.

    Raises:
        ValueError: if a tensor differs between the models in more than its values.
    """

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials = list(trials)
        models = [trial.model for trial in trials]
        self._host = _Loss(models[0], trials[0].problem.loss)
        self._parameters = {name: _Common(same) for name, same in _named(models, "parameters")}
        self._buffers = {name: _Common(same) for name, same in _named(models, "buffers")}
        for common in self._parameters.values():
            common.all.requires_grad_(common.members[0].requires_grad)

    def backpropagate(self, batches: list[Batch]) -> list[float]:
        """The loss of each trial; its gradient is in the `grad` of its parameters then.

        Where it raises, parameters and buffers are as they were.
        """
        for common in (*self._parameters.values(), *self._buffers.values()):
            common.gather()
            common.hand_out_gradient(None)  # frees the last one before there is another
        # The forward pass may change buffers in place: it is given copies.
        buffers = {name: common.all.clone() for name, common in self._buffers.items()}
        self.trials[0].seed_step()
        losses: list[Tensor] = []
        for batch in batches:
            with self.trials[0].precision(), _SharedDropout():
                loss, buffers = self._forward(batch, buffers, len(batches))
            loss.backward(torch.ones_like(loss))  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        totals = [sum(parts) for parts in zip(*(loss.tolist() for loss in losses), strict=True)]
        for name, common in self._buffers.items():
            common.check(buffers[name])
        for name, common in self._buffers.items():
            common.all.copy_(buffers[name])
        for common in self._parameters.values():
            common.hand_out_gradient(common.all.grad)
        return totals

    def _forward(
        self, batch: Batch, buffers: dict[str, Tensor], count: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses [model] of a batch, divided by `count`, and the buffers after it."""

        def one(weights: dict[str, Tensor], kept: dict[str, Tensor]) -> Any:
            tensors = {MODEL + name: tensor for name, tensor in {**weights, **kept}.items()}
            loss = functional_call(self._host, tensors, (batch,)) / count
            return loss, {name: tensors[MODEL + name].detach() for name in kept}

        weights = {name: common.all for name, common in self._parameters.items()}
        # Every model sees the dropout masks that it would see alone.
        found: tuple[Tensor, dict[str, Tensor]] = torch.vmap(one, randomness="same")(
            weights, buffers
        )
        return found


class _Common:
    """The tensor [model, ...] whose slices are one parameter, or one buffer, of every model."""

    def __init__(self, members: list[Tensor]) -> None:
        first = members[0]
        kinds = {(m.shape, m.dtype, m.requires_grad) for m in members}
        if len(kinds) > 1:
            raise ValueError("the rates have models whose tensors differ in kind")
        self.members = members
        self.all = _empty(len(members), first)
        self._slices = self.all.unbind(0)
        self.gather()

    def gather(self) -> None:
        """Take back in what a member was replaced with, as by `p.data = ...` in an optimizer."""
        for member, part in zip(self.members, self._slices, strict=True):
            if member.data_ptr() != part.data_ptr() or member.stride() != part.stride():
                with torch.no_grad():
                    part.copy_(member)
                member.data = part

    def check(self, values: Tensor) -> None:
        """Raise ValueError unless `values` fit in."""
        if values.shape != self.all.shape:
            raise ValueError(f"a step makes a buffer of {list(values.shape[1:])}")

    def hand_out_gradient(self, grad: Tensor | None) -> None:
        """Make `grad` [model, ...] that of the common tensor and of its members."""
        self.all.grad = grad
        parts = [None] * len(self.members) if grad is None else grad.unbind(0)
        for member, part in zip(self.members, parts, strict=True):
            member.grad = part


def _empty(count: int, like: Tensor) -> Tensor:
    """Room for so many tensors, each with the strides of `like`, one behind the other."""
    if torch.empty_like(like, device="meta").stride() != like.stride():
        return like.new_empty((count, *like.shape))  # it has gaps, which are not worth keeping
    return torch.empty_strided(
        (count, *like.shape),
        (like.numel(), *like.stride()),
        dtype=like.dtype,
        device=like.device,
    )


class _Loss(nn.Module):
    """The loss as a module of one batch, so that `functional_call` reaches the model in it."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = (loss,)  # in a tuple, or a loss that is a module would become a part

    def forward(self, batch: Batch) -> Tensor:
        return self._loss[0](self.model, batch)


class _Mask(torch.autograd.Function):
    """The mask that dropout draws for one model, from the input [model, ...] of all."""

    @staticmethod
    def forward(x: Tensor, p: float) -> Tensor:
        return F.dropout(torch.ones_like(x), p)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, p: float) -> tuple[Tensor, None]:
        # An accelerator draws in other ways for what needs no gradient, and the order of memory
        # matters everywhere: the ones resemble the input of one model in both.
        with torch.enable_grad():
            ones = torch.ones_like(x.detach().select(in_dims[0], 0))
            return F.dropout(ones.requires_grad_(x.requires_grad), p).detach(), None


class _SharedDropout(TorchFunctionMode):
    """Dropout under vmap draws as a plain model would, to the last bit of the mask."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_dropout if func is F.dropout else func)(*args, **(kwargs or {}))


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return input
    mask: Tensor = _Mask.apply(input, p)  # type: ignore[no-untyped-call]
    return input.mul_(mask) if inplace else input * mask


def _named(models: Sequence[nn.Module], kind: str) -> Iterator[tuple[str, list[Tensor]]]:
    """Each name with the tensors that the models keep under it."""
    found = [dict(getattr(model, f"named_{kind}")()) for model in models]
    for name in found[0]:
        yield name, [tensors[name] for tensors in found]
