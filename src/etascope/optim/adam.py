"""Adam as TensorFlow's kernel computes it, a torch optimizer at the speed of torch's fused one."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam as torch_adam
from torch.optim.optimizer import ParamsT

from etascope.errors import UsageError

_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
_FUSED_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Adam(Optimizer):
    """Adam with its eps outside the bias correction, plain or with a Nesterov direction.

    With `g` the gradient, plus `weight_decay * var` where that is not 0::

        t     = t + 1
        lr_t  = lr * sqrt(1 - beta2^t) / (1 - beta1^t)
        m     = m + (1 - beta1) * (g - m)
        v     = v + (1 - beta2) * (g*g - v)
        var   = var - lr_t * m / (sqrt(v) + eps)                            nesterov=False
        var   = var - lr_t * (beta1*m + (1 - beta1)*g) / (sqrt(v) + eps)    nesterov=True

    The plain direction runs in torch's fused kernel, which is handed the eps of that step; the
    other, and parameters that the kernel does not take, run in ordinary torch operations.

    Args:
        params: Real parameters, named parameters, or dicts of them with options of their own
            (`lr`, `betas`, `eps`, `nesterov`, `weight_decay`). Any shape and memory format.
        lr: The learning rate, >= 0 and finite; a float or a tensor of one element. Schedulers set
            it in the groups.
        betas: The decay rates of m and v, each in [0, 1).
        eps: Added to sqrt(v), in units of the gradient; > 0.
        nesterov: Whether the direction looks one step ahead.
        weight_decay: An L2 penalty added to the gradient, >= 0.

    Raises:
        UsageError: An option is out of its range, a parameter is complex, a gradient is sparse
            (at `step`), or a state that is loaded does not fit.

    Example:
        The first step has the length `lr`, whatever the scale of the gradient:

        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = Adam([weight], lr=0.5)
        >>> (weight * torch.tensor([2.0, -500.0])).sum().backward()
        >>> optimizer.step()
        >>> [round(value, 4) for value in weight.tolist()]
        [2.5, 4.5]

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, in the form of
    the last paragraph of section 2; both directions are those of TensorFlow's ApplyAdam.

    Divergences:
        `torch.optim.Adam` adds its eps to the corrected root: the eps here equals one of
        `eps / sqrt(1 - beta2^t)` there, 31.6 times larger at the first step.

        t is one count for all parameters, also for groups that are added later, as in TensorFlow;
        torch counts for each parameter. It goes on where a gradient is None: m and v stay, and
        the next step of that parameter is corrected with the common t.

        The Nesterov direction is not NAdam (Dozat, "Incorporating Nesterov Momentum into Adam",
        2016; `torch.optim.NAdam`, Keras Nadam), which also schedules the momentum and divides its
        two terms by corrections of their own.

        There is no `amsgrad`, `maximize` or `decoupled_weight_decay`, and t is counted on the
        host: a CUDA graph cannot capture the step.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
        }
        _check_options(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters that join the common t where it stands.

        Args:
            param_group: `params`, and the options in which they differ from the others.

        Raises:
            UsageError: An option is out of its range or a parameter is complex; nothing is added.
        """
        _check_options({**self.defaults, **param_group})
        t = self.param_groups[0]["t"] if self.param_groups else 0
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if any(p.is_complex() for p in group["params"]):
            self.param_groups.pop()
            raise UsageError(
                "Adam takes real parameters only, and one of these is complex; use "
                "torch.optim.Adam, or pass its torch.view_as_real instead."
            )
        group["t"] = t

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Computes the loss and its gradients anew; called once, before the step.

        Returns:
            What the closure returned; None without one.

        Raises:
            UsageError: A gradient is sparse, or a CUDA graph is being captured; nothing is changed.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        if cuda and torch.cuda.is_current_stream_capturing():
            raise UsageError(
                "Adam counts its steps on the host, which a CUDA graph would freeze; capture the "
                "backward pass only, or use torch.optim.Adam with capturable=True."
            )
        for group in self.param_groups:
            if any(p.grad is not None and p.grad.layout != torch.strided for p in group["params"]):
                raise UsageError(
                    "Adam takes dense gradients only, and one of these is sparse; make the "
                    "embedding with sparse=False, or give it torch.optim.SparseAdam."
                )
        for group in self.param_groups:
            group["t"] += 1
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        fused: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
        for p in group["params"]:
            if p.grad is None:
                if state := self.state.get(p):
                    state["step"].fill_(group["t"])
                continue
            state = self.state[p]
            if not state:
                zeros = torch.zeros_like(p, memory_format=torch.preserve_format)
                state.update(_state(p, group["t"] - 1, zeros, zeros.clone()))
            if group["nesterov"] or not _kernel_takes(p):
                _update(p, p.grad, state, group)
            else:
                fused.append((p, p.grad, state))
        if fused:
            _update_fused(fused, group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state that is loaded or copied.

        That of `torch.optim.Adam` records no t: it is then the largest count of its parameters.
        """
        groups, states = state["param_groups"], state["state"]
        counts = [group["t"] for group in groups if "t" in group]
        counts = counts or [float(s["step"]) for s in states.values() if "step" in s]
        t = _checked_count(max(counts, default=0))
        for group in groups:
            group.setdefault("nesterov", False)
            group["t"] = t
            _check_options(group)
            for p in group["params"]:
                if states.get(p):
                    states[p] = _state(p, t, *_checked_moments(p, states[p]))
        super().__setstate__(state)


def _check_options(options: Mapping[str, Any]) -> None:
    for name in ("amsgrad", "maximize", "decoupled_weight_decay"):
        if options.get(name):
            raise UsageError(f"Adam has no {name}; leave it out, or use torch.optim.Adam.")
    for name in ("lr", "weight_decay"):
        value = options[name]
        if isinstance(value, Tensor) and value.numel() != 1:
            raise UsageError(f"Adam's {name} has {value.numel()} elements; give it one.")
        if not 0 <= float(value) < math.inf:
            raise UsageError(f"Adam's {name} is {float(value)}; give it one of 0 or more, finite.")
    betas = tuple(options["betas"])
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UsageError(f"Adam's betas are {betas}; give two numbers in [0, 1).")
    if not 0 < options["eps"] < math.inf:
        raise UsageError(f"Adam's eps is {options['eps']}; give it one above 0, finite.")


def _checked_count(t: Any) -> int:
    if not (isinstance(t, int | float) and 0 <= t < math.inf and t == int(t)):
        raise UsageError(f"Adam cannot load a state whose step count is {t!r}; it must be whole.")
    return int(t)


def _checked_moments(p: Tensor, state: Mapping[str, Any]) -> list[Tensor]:
    """Return copies that share nothing with what was loaded, in the memory order of `p`.

    Moments of another shape are refused: the kernel would walk past their end.
    """
    moments = []
    for name in ("exp_avg", "exp_avg_sq"):
        found = tuple(state[name].shape) if name in state else "missing"
        if found != tuple(p.shape):
            raise UsageError(
                f"Adam cannot load this state: {name} is {found} where the parameter is "
                f"{tuple(p.shape)}; load the state of an optimizer of the same model."
            )
        moments.append(torch.empty_like(p, requires_grad=False).copy_(state[name]))
    return moments


def _state(p: Tensor, t: int, m: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Return what `torch.optim.Adam` keeps too, so that either loads the state of the other."""
    step = torch.tensor(float(t), dtype=torch.float32, device=p.device)
    return {"step": step, "exp_avg": m, "exp_avg_sq": v}


def _kernel_takes(p: Tensor) -> bool:
    """Tell whether the fused kernel can update `p`: it walks memory, so no gap may be in it."""
    return (
        p.device.type in _FUSED_DEVICES
        and p.dtype in _FUSED_DTYPES
        and (p.is_contiguous() or torch.empty_like(p, device="meta").stride() == p.stride())
    )


def _laid_out_like(p: Tensor, tensor: Tensor) -> Tensor:
    """Return `tensor` in the memory order of `p`: itself where that is so already.

    The fused kernel pairs elements by their place in memory. A gradient that the caller set, a
    moment loaded from a contiguous copy and a model turned to channels_last after the first step
    may lie otherwise.
    """
    if tensor.stride() == p.stride() or all(
        size == 1 or here == there
        for size, here, there in zip(p.shape, tensor.stride(), p.stride(), strict=True)
    ):
        return tensor
    return torch.empty_like(p).copy_(tensor)


def _update_fused(
    ready: Iterable[tuple[Tensor, Tensor, dict[str, Tensor]]], group: Mapping[str, Any]
) -> None:
    """Update `(parameter, gradient, state)` together in torch's fused kernel, which counts on."""
    params, grads, moments, squares, steps = [], [], [], [], []
    for p, grad, state in ready:
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = _laid_out_like(p, state[name])
        params.append(p)
        grads.append(_laid_out_like(p, grad))
        moments.append(state["exp_avg"])
        squares.append(state["exp_avg_sq"])
        steps.append(state["step"])
    beta1, beta2 = group["betas"]
    torch_adam(
        params,
        grads,
        moments,
        squares,
        [],
        steps,
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"] / math.sqrt(1 - beta2 ** group["t"]),
        maximize=False,
    )


def _update(p: Tensor, grad: Tensor, state: dict[str, Tensor], group: Mapping[str, Any]) -> None:
    """Update one parameter as the formula reads, with operations that take any strides.

    Half precision is widened for the step, as in the fused kernel: float16 holds neither g*g nor
    the usual eps, and 0 / 0 would follow.
    """
    (beta1, beta2), t = group["betas"], group["t"]
    kept = (p, state["exp_avg"], state["exp_avg_sq"])
    wide = torch.promote_types(p.dtype, torch.float32)
    var, m, v = (tensor.to(wide) for tensor in kept)
    grad = grad.to(wide)
    if group["weight_decay"] != 0:
        grad = grad.add(var, alpha=group["weight_decay"])
    state["step"].fill_(t)
    m.lerp_(grad, 1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    direction = m.lerp(grad, 1 - beta1) if group["nesterov"] else m
    lr_t = float(group["lr"]) * math.sqrt(1 - beta2**t) / (1 - beta1**t)
    var.addcdiv_(direction, v.sqrt().add_(group["eps"]), value=-lr_t)
    if wide != p.dtype:
        for narrow, value in zip(kept, (var, m, v), strict=True):
            narrow.copy_(value)
