"""Problems that own their step: several optimizers, adversaries, anything that is one's own loop.

`make_state(lr)` gives a dict of objects with a `state_dict`; modules among them hold the weights,
the others (optimizers, schedulers, scalers) are saved and restored beside them. The rest of
etascope sees one module with an optimizer that does nothing: the step is taken where the loss is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from etascope.errors import UsageError
from etascope.problems.contents import Batch

State = dict[str, Any]
NOMINAL = 1e-3  # the rate of a state that only the checks look at


class Owned(nn.Module):
    """The modules of a state, and the state itself.

    Args:
        make_state: from a learning rate to the state, with the same draws at every call.
        device: where the modules belong.

    Raises:
        UsageError: if that is no dict of objects with a `state_dict`, one of them a module.
    """

    state: State

    def __init__(self, make_state: Callable[[float], State], device: torch.device) -> None:
        super().__init__()
        self._make_state, self._device = make_state, device
        self.begin(NOMINAL)

    def begin(self, lr: float) -> None:
        """Make the state anew, at a rate."""
        state = self._make_state(lr)
        if not isinstance(state, dict):
            raise UsageError(f"make_state returned a {type(state).__name__}; it must return a dict")
        for name, part in state.items():
            if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
                raise UsageError(
                    f"make_state gave a {type(part).__name__} as {name!r}, which has no "
                    "state_dict, so it cannot be paused; leave it out, or give it one"
                )
        modules = {
            _module_name(name): part for name, part in state.items() if isinstance(part, nn.Module)
        }
        if not modules:
            raise UsageError("make_state gave no nn.Module; its weights are what is trained")
        self.parts = nn.ModuleDict(modules).to(self._device)
        self.state = state

    def others(self) -> Iterator[tuple[str, Any]]:
        """The parts of the state that are no modules."""
        for name, part in self.state.items():
            if not isinstance(part, nn.Module):
                yield name, part


def _module_name(name: object) -> str:
    """The name of a part under which a ModuleDict takes it: no dots, and none of its own names."""
    plain = str(name).replace(".", "_")
    return (
        f"{plain}_" if not plain or hasattr(nn.ModuleDict, plain) or plain == "training" else plain
    )


def roots_of(model: nn.Module) -> dict[str, Any]:
    """The modules of a model and the other parts of its state, by name.

    A scheduler is none: its state_dict is all that it keeps.
    """
    roots: dict[str, Any] = {
        f"model.{name}" if name else "model": module for name, module in model.named_modules()
    }
    if isinstance(model, Owned):
        others = {f"state.{name}": part for name, part in model.others()}
        roots |= {k: part for k, part in others.items() if not isinstance(part, LRScheduler)}
    return roots


class OwnOptimizer(Optimizer):
    """Stands for the optimizers of a state: it only carries what they keep.

    Args:
        model: whose state it is.
        lr: the rate that the state was made with.
    """

    def __init__(self, model: Owned, lr: float) -> None:
        super().__init__(list(model.parameters()), {"lr": lr})
        self._model = model

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing: the step has been taken."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: the gradients are the owner's."""

    def state_dict(self) -> dict[str, Any]:
        """What every part that is no module keeps."""
        return {name: part.state_dict() for name, part in self._model.others()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Give every part back what it kept."""
        for name, part in self._model.others():
            part.load_state_dict(state_dict[name])


def own_step(model: nn.Module, lr: float) -> Optimizer:
    """The optimizer factory of every problem that owns its step."""
    assert isinstance(model, Owned)
    model.begin(lr)
    return OwnOptimizer(model, lr)


def loss_of(
    step: Callable[[State, Batch], Any], evaluate: Callable[[State, Batch], Any]
) -> Callable[[nn.Module, Batch], torch.Tensor]:
    """The loss of a problem that owns its step: taking a step where gradients are wanted."""

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        assert isinstance(model, Owned)
        name = "step" if torch.is_grad_enabled() else "evaluate"
        value = (step if torch.is_grad_enabled() else evaluate)(model.state, batch)
        try:
            found = torch.as_tensor(value).detach()
        except (RuntimeError, TypeError, ValueError):
            found = None
        if found is None or found.numel() != 1 or found.is_complex():
            raise UsageError(f"{name} returned {type(value).__name__}; it must return the loss")
        return found.reshape(()).float()

    return loss


def metric_of(metric: Callable[[State, Batch], Any]) -> Callable[[nn.Module, Batch], Any]:
    """The metric of a problem that owns its step, of its module."""

    @wraps(metric)
    def measure(model: nn.Module, batch: Batch) -> Any:
        assert isinstance(model, Owned)
        return metric(model.state, batch)

    return measure
