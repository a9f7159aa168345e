"""JAX: `jit` trains one rate after another, `vmap` steps the models of all rates at once.

Both share one pure step. Kernels are [height, width, in, out]; under vmap every array of a model
has the rate as its first axis, and all models see the same batch and the same dropout mask.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
from protocol import (
    Experiment,
    Images,
    Labels,
    Prepared,
    Repeat,
    Step,
    batches,
    one_rate_at_a_time,
    serve,
    training_data,
)

SHAPES = ((5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,), (3136, 1024), (1024,), (1024, 10), (10,))
BETA1, BETA2, EPSILON, KEEP_PROB = 0.9, 0.999, 1e-8, 0.5

Params = list[jax.Array]
State = tuple[Params, Params, Params, jax.Array]  # weights, m, v, step count


def initial() -> State:
    """Return the state before the first step."""
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    params = [
        0.1 * jax.random.truncated_normal(key, -2, 2, shape)
        if len(shape) > 1
        else jnp.full(shape, 0.1)
        for key, shape in zip(keys, SHAPES, strict=True)
    ]
    zeros = [jnp.zeros(shape) for shape in SHAPES]
    return params, zeros, [jnp.zeros(shape) for shape in SHAPES], jnp.zeros((), jnp.int32)


def loss_of(params: Params, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of a batch, with dropout."""
    conv1, bias1, conv2, bias2, dense, dense_bias, out, out_bias = params
    hidden = images
    for kernel, bias in ((conv1, bias1), (conv2, bias2)):
        hidden = jax.lax.conv_general_dilated(
            hidden, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jax.lax.reduce_window(
            jax.nn.relu(hidden + bias), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
    hidden = jax.nn.relu(hidden.reshape(len(hidden), -1) @ dense + dense_bias)
    kept = jax.random.bernoulli(key, KEEP_PROB, hidden.shape)
    logits = jnp.where(kept, hidden / KEEP_PROB, 0) @ out + out_bias
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -chosen.mean()


def train_step(
    state: State, lr: jax.Array, images: jax.Array, labels: jax.Array
) -> tuple[State, jax.Array]:
    """Make one update of Adam and return the loss that it was computed from."""
    params, m, v, count = state
    key = jax.random.fold_in(jax.random.key(1), count)
    loss, grads = jax.value_and_grad(loss_of)(params, images, labels, key)
    count = count + 1
    m = [BETA1 * old + (1 - BETA1) * g for old, g in zip(m, grads, strict=True)]
    v = [BETA2 * old + (1 - BETA2) * g * g for old, g in zip(v, grads, strict=True)]
    scale = lr * jnp.sqrt(1 - BETA2**count) / (1 - BETA1**count)
    params = [p - scale * a / (jnp.sqrt(b) + EPSILON) for p, a, b in zip(params, m, v, strict=True)]
    return (params, m, v, count), loss


def prepare_jit(experiment: Experiment) -> Prepared:
    """Train one rate after another with one compiled step."""
    jitted = jax.jit(train_step, donate_argnums=0)

    def start(lr: float) -> Step:
        state = initial()

        def step(images: Images, labels: Labels) -> float:
            nonlocal state
            state, loss = jitted(state, lr, images, labels)
            return float(loss)

        return step

    return one_rate_at_a_time(start, experiment)


def prepare_vmap(experiment: Experiment) -> Prepared:
    """Train all rates at once: one step is a step of as many models as there are rates."""
    lrs, count = jnp.asarray(experiment.lrs), len(experiment.lrs)
    stepped = jax.jit(jax.vmap(train_step, in_axes=(0, 0, None, None)), donate_argnums=0)
    images, labels = training_data()

    def stacked() -> State:
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), initial())

    def advance(state: State, stream: Any, steps: int) -> tuple[State, list[float]]:
        losses: list[float] = []
        for _ in range(steps):
            state, loss = stepped(state, lrs, *next(stream))
            losses = loss.tolist()
        return state, losses

    def repeat() -> Repeat:
        stream = batches(images, labels, experiment.batch)
        state, _ = advance(stacked(), stream, experiment.warm_up)
        began = time.perf_counter()
        _, losses = advance(state, stream, experiment.steps)
        return Repeat(time.perf_counter() - began, experiment.steps * count, losses)

    advance(stacked(), batches(images, labels, experiment.batch), 1)
    return Prepared(repeat, {}, time.time())


def prepare(experiment: Experiment) -> Prepared:
    """Prepare the variant that the options name."""
    prepare_variant = {"jit": prepare_jit, "vmap": prepare_vmap}[experiment.options["variant"]]
    facts = {"jax": jax.__version__, "backend": jax.default_backend(), "threads": "XLA's own"}
    return prepare_variant(experiment)._replace(facts=facts)


if __name__ == "__main__":
    serve(prepare)
