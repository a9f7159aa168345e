"""Adam in float64 NumPy: the readable twin that `etascope.optim.adam` is held against.

Arrays have any shape; theta, grad, m and v share it.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from etascope.errors import UsageError

Array = npt.NDArray[np.float64]


class AdamState(NamedTuple):
    """What Adam remembers between two steps."""

    t: int
    """Steps taken so far, >= 0."""
    m: Array
    """The moving average of the gradient."""
    v: Array
    """The moving average of the squared gradient."""


def adam_init(theta: npt.ArrayLike) -> AdamState:
    """Return the state before the first step: `t = 0`, `m = v = 0`.

    Args:
        theta: The parameters, of any shape.

    Returns:
        The state, float64, of the shape of `theta`.

    Example:
        >>> adam_init([3.0, 4.0])
        AdamState(t=0, m=array([0., 0.]), v=array([0., 0.]))
    """
    shape = np.shape(theta)
    return AdamState(0, np.zeros(shape), np.zeros(shape))


def adam_update(
    theta: npt.ArrayLike,
    grad: npt.ArrayLike,
    state: AdamState,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    nesterov: bool = False,
) -> tuple[Array, AdamState]:
    """Take one step of Adam and change none of the arguments.

    With `d = m`, or `d = beta1*m + (1 - beta1)*g` for the Nesterov branch::

        t     = t + 1
        lr_t  = lr * sqrt(1 - beta2^t) / (1 - beta1^t)
        m     = m + (1 - beta1) * (g - m)
        v     = v + (1 - beta2) * (g*g - v)
        theta = theta - lr_t * d / (sqrt(v) + eps)

    Args:
        theta: The parameters, of any shape.
        grad: The gradient at `theta`, of the same shape.
        state: What `adam_init` or the step before returned.
        lr: The learning rate, >= 0.
        betas: The decay rates of m and v, each in [0, 1).
        eps: Added to sqrt(v), outside the bias correction, in units of the gradient; > 0.
        nesterov: Whether the direction looks one step ahead.

    Returns:
        The new parameters and the new state, float64.

    Raises:
        UsageError: The shapes differ.

    Example:
        The first step has the length `lr` against the sign of the gradient:

        >>> theta, state = adam_update([3.0, 4.0], [2.0, -5.0], adam_init([3.0, 4.0]), lr=0.5)
        >>> theta.round(6), state.t
        (array([2.5, 4.5]), 1)

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, section 2, the
    form of its last paragraph; the Nesterov branch as in TensorFlow's ApplyAdam.

    Divergence: `torch.optim.Adam` adds its eps to the corrected root, sqrt(v / (1 - beta2^t)).
    """
    var, grad = np.asarray(theta, np.float64), np.asarray(grad, np.float64)
    if not var.shape == grad.shape == state.m.shape == state.v.shape:
        raise UsageError(
            f"adam_update: theta {var.shape}, grad {grad.shape}, m {state.m.shape} and "
            f"v {state.v.shape} differ in shape; give all of them one shape."
        )
    beta1, beta2 = betas
    t = state.t + 1
    m = state.m + (1 - beta1) * (grad - state.m)
    v = state.v + (1 - beta2) * (grad * grad - state.v)
    direction = beta1 * m + (1 - beta1) * grad if nesterov else m
    var = var - effective_lr(lr, t, betas) * direction / (np.sqrt(v) + eps)
    return var, AdamState(t, m, v)


def effective_lr(lr: float, t: npt.ArrayLike, betas: tuple[float, float] = (0.9, 0.999)) -> Array:
    """Return the factor `lr_t` that Adam puts before `m / (sqrt(v) + eps)` at step `t`.

    `lr_t = lr * sqrt(1 - beta2^t) / (1 - beta1^t)`: 0.316 lr at the first step with the usual
    betas, least (0.152 lr) at the twelfth, and lr in the end.

    Args:
        lr: The learning rate, >= 0.
        t: One step or an array of steps, each >= 1.
        betas: The decay rates of m and v, each in [0, 1).

    Returns:
        float64 of the shape of `t`, in the unit of `lr`.

    Raises:
        UsageError: A step is below 1.

    Example:
        >>> effective_lr(0.5, [1, 10, 100, 10_000]).round(4)
        array([0.1581, 0.0766, 0.1543, 0.5   ])

    Source: Kingma & Ba, ICLR 2015, section 2, last paragraph.
    """
    steps = np.asarray(t, np.float64)
    if not np.all(steps >= 1):
        raise UsageError("effective_lr: t counts from 1; give steps of at least 1.")
    beta1, beta2 = betas
    return np.asarray(lr * np.sqrt(1 - beta2**steps) / (1 - beta1**steps))
