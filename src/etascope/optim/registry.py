"""The optimizers that have a name: how each is made, and the rate at which it turns unstable.

Every `make` takes `(params, lr, weight_decay)`; a `weight_decay` of None is the optimizer's own
default. `g` is the gradient, to which all but adamw add `weight_decay * var`; t counts from 1.
"""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from etascope.errors import UsageError
from etascope.optim.adam import Adam

_BETA1 = 0.9


def frozen_threshold(beta: float, mu: float) -> float:
    """Return the largest stable `lr * lambda_max(P^-1 H)` for a preconditioner P held fixed.

    The update is `m = beta*m + (1 - beta)*g`, `var = var - lr * P^-1 (mu*m + (1 - mu)*g)`; on a
    quadratic of Hessian H it converges below and diverges above::

        (2 + 2*beta) / (1 + beta - 2*mu*beta)

    Args:
        beta: The decay rate of m, in [0, 1).
        mu: The share of m in the direction, in [0, 1].

    Returns:
        The threshold, without unit.

    Raises:
        UsageError: An argument is out of its range.

    Example:
        >>> frozen_threshold(0, 0), round(frozen_threshold(0.9, 1), 2)
        (2.0, 38.0)

    Source: the Jury condition of the recursion in one eigenvector, whose first eigenvalue to
    leave the unit circle does so at -1. For mu = 1 it is the bound of Cohen et al., "Adaptive
    Gradient Methods at the Edge of Stability", 2022.
    """
    if not (0 <= beta < 1 and 0 <= mu <= 1):
        raise UsageError(f"frozen_threshold: beta {beta} is not in [0, 1) or mu {mu} not in [0, 1]")
    return (2 + 2 * beta) / (1 + beta - 2 * mu * beta)


def make_sgd(params: Iterable[Parameter], lr: float, weight_decay: float | None) -> Optimizer:
    """`var = var - lr * g`: no memory and no preconditioner, so its threshold is 2 on H itself."""
    return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay or 0.0)


def make_sgd_momentum(
    params: Iterable[Parameter], lr: float, weight_decay: float | None
) -> Optimizer:
    """`b = 0.9*b + g; var = var - lr * b`: the heavy ball.

    `b` is a sum and not an average, so at equal rates it goes ten times as far as sgd in the end.
    In the terms of `frozen_threshold`, m is a tenth of b and mu is 1: 38 / 10 = 2 + 2*0.9 = 3.8.
    """
    return torch.optim.SGD(params, lr=lr, momentum=0.9, weight_decay=weight_decay or 0.0)


def make_sgd_nesterov(
    params: Iterable[Parameter], lr: float, weight_decay: float | None
) -> Optimizer:
    """`b = 0.9*b + g; var = var - lr * (g + 0.9*b)`: the direction looks one step ahead.

    It damps better than the heavy ball and turns unstable earlier: mu is 0.9, so 13.57 / 10, which
    is (2 + 2*0.9) / (1 + 2*0.9).
    """
    return torch.optim.SGD(
        params, lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay or 0.0
    )


def make_adam(params: Iterable[Parameter], lr: float, weight_decay: float | None) -> Optimizer:
    """`var = var - lr_t * m / (sqrt(v) + eps)` with TensorFlow's eps: see `etascope.optim.adam`.

    P is diag(sqrt(v)); with m an average of memory 0.9, the threshold is 38, not 2.
    """
    return Adam(params, lr=lr, weight_decay=weight_decay or 0.0)


def make_adam_nesterov(
    params: Iterable[Parameter], lr: float, weight_decay: float | None
) -> Optimizer:
    """`var = var - lr_t * (0.9*m + 0.1*g) / (sqrt(v) + eps)`: the Nesterov branch of that kernel.

    It is not nadam, which schedules the 0.9. Threshold 13.57: mu is 0.9.
    """
    return Adam(params, lr=lr, nesterov=True, weight_decay=weight_decay or 0.0)


def make_adamw(params: Iterable[Parameter], lr: float, weight_decay: float | None) -> Optimizer:
    """`var = (1 - lr*weight_decay) * var - lr * m^ / (sqrt(v^) + eps)`, by default decay 0.01.

    The decay does not pass through m and v, as it does in adam; m^ and v^ are m and v divided by
    `1 - beta^t`, so eps stands inside the correction. The threshold is that of adam as long as
    lr*weight_decay is small.
    """
    return torch.optim.AdamW(params, lr=lr, weight_decay=_or_default(weight_decay, 0.01))


def make_nadam(params: Iterable[Parameter], lr: float, weight_decay: float | None) -> Optimizer:
    """`var = var - lr * (c1*g + c2*m) / (sqrt(v^) + eps)`: Dozat's look-ahead.

    mu_t = 0.9*(1 - 0.5 * 0.96^(0.004*t)), c1 = (1 - mu_t) / (1 - mu_1...mu_t),
    c2 = mu_(t+1) / (1 - mu_1...mu_(t+1)). Unlike adam-nesterov, the share of m rises through
    training, from 0.45 to 0.9, and with it the threshold, from about 3.5 to 13.57: no one number
    is given.
    """
    return torch.optim.NAdam(params, lr=lr, weight_decay=weight_decay or 0.0)


def make_radam(params: Iterable[Parameter], lr: float, weight_decay: float | None) -> Optimizer:
    """`var = var - lr * r_t * m^ / (sqrt(v^) + eps)`, and `lr * m^` alone in the first 5 steps.

    r_t rises from near 0 to 1 over thousands of steps, a warm-up that adam lacks. The threshold
    is first that of momentum on H, then 38 / r_t: it moves, so no one number is given.
    """
    return torch.optim.RAdam(params, lr=lr, weight_decay=weight_decay or 0.0)


def make_adamax(params: Iterable[Parameter], lr: float, weight_decay: float | None) -> Optimizer:
    """`u = max(0.999*u, |g| + eps); var = var - lr * m^ / u`: adam with the largest gradient.

    u follows a growing gradient within the same step, where sqrt(v) needs hundreds: it cannot be
    held fixed while an oscillation grows, so no threshold is given.
    """
    return torch.optim.Adamax(params, lr=lr, weight_decay=weight_decay or 0.0)


def make_rmsprop(params: Iterable[Parameter], lr: float, weight_decay: float | None) -> Optimizer:
    """`v = 0.99*v + 0.01*g*g; var = var - lr * g / (sqrt(v) + eps)`: adam without m.

    It lacks the correction of v, so its first steps are ten times lr. Without momentum the
    threshold is 2, as for sgd, but on P^-1 H.
    """
    return torch.optim.RMSprop(params, lr=lr, weight_decay=weight_decay or 0.0)


def make_adagrad(params: Iterable[Parameter], lr: float, weight_decay: float | None) -> Optimizer:
    """`s = s + g*g; var = var - lr * g / (sqrt(s) + eps)`: rmsprop that forgets nothing.

    s only grows, so the steps shrink without end, and an unstable start heals itself. Threshold
    2 on P^-1 H with P = diag(sqrt(s)).
    """
    return torch.optim.Adagrad(params, lr=lr, weight_decay=weight_decay or 0.0)


def _or_default(weight_decay: float | None, default: float) -> float:
    return default if weight_decay is None else weight_decay


@dataclass(frozen=True)
class OptimizerSpec:
    """One named optimizer."""

    name: str
    make: Callable[[Iterable[Parameter], float, float | None], Optimizer]
    """Takes the parameters, the learning rate and the weight decay (None: its own default)."""
    stability: float | None
    """The frozen-preconditioner threshold on `lr * lambda_max(P^-1 H)`, where there is one."""
    summary: str
    """One line for a table."""


OPTIMIZERS: dict[str, OptimizerSpec] = {
    spec.name: spec
    for spec in (
        OptimizerSpec("sgd", make_sgd, frozen_threshold(0, 0), "plain gradient descent"),
        OptimizerSpec("sgd-momentum", make_sgd_momentum, 2 + 2 * 0.9, "heavy ball, momentum 0.9"),
        OptimizerSpec(
            "sgd-nesterov",
            make_sgd_nesterov,
            (2 + 2 * 0.9) / (1 + 2 * 0.9),
            "Nesterov momentum 0.9",
        ),
        OptimizerSpec(
            "adam",
            make_adam,
            frozen_threshold(_BETA1, 1),
            "Adam as in TensorFlow, eps outside the bias correction",
        ),
        OptimizerSpec(
            "adam-nesterov",
            make_adam_nesterov,
            frozen_threshold(_BETA1, _BETA1),
            "the Nesterov branch of TensorFlow's Adam",
        ),
        OptimizerSpec(
            "adamw", make_adamw, frozen_threshold(_BETA1, 1), "Adam with decoupled weight decay"
        ),
        OptimizerSpec("nadam", make_nadam, None, "Adam with Dozat's scheduled look-ahead"),
        OptimizerSpec("radam", make_radam, None, "Adam with a rectified, warming-up step"),
        OptimizerSpec("adamax", make_adamax, None, "Adam scaled by the largest recent gradient"),
        OptimizerSpec("rmsprop", make_rmsprop, 2.0, "gradient over its root mean square"),
        OptimizerSpec("adagrad", make_adagrad, 2.0, "gradient over the root of its squared sum"),
    )
}
"""The named optimizers, in the order in which tables show them."""


def get_optimizer(name: str) -> OptimizerSpec:
    """Look a named optimizer up.

    Args:
        name: One of the keys of `OPTIMIZERS`.

    Returns:
        Its specification.

    Raises:
        UsageError: There is none of that name; the message gives close ones and all.

    Example:
        >>> round(get_optimizer("adam-nesterov").stability, 2)
        13.57
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    close = difflib.get_close_matches(name.lower().replace("_", "-"), OPTIMIZERS)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UsageError(f"no optimizer is called {name!r}; {hint}choose from {', '.join(OPTIMIZERS)}.")
