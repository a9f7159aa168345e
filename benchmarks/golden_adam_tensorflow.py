"""Makes golden vectors of Adam by TensorFlow's own kernel, tf.raw_ops.ResourceApplyAdam.

Writes one compressed npz of plain arrays (no pickle), which the tests read without TensorFlow:
    theta0                                                          [element], float64
    grads                                                           [step, element], float64
    theta/nesterov={0,1}/{float32,float64}/lr={..}/eps={..}         [step, element], that dtype
    provenance                                                      a JSON string
theta holds the parameters after every step. theta0 and grads are exact in float32, so that both
precisions start from the same numbers and see the same gradients.

Run: `python benchmarks/golden_adam_tensorflow.py [--out FILE] [--date YYYY-MM-DD]`, in an
environment with tensorflow-cpu.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported

import numpy as np
import numpy.typing as npt
import tensorflow as tf

ROOT = Path(__file__).resolve().parent.parent
SEED, STEPS, ELEMENTS = 20261123, 200, 32
BETA1, BETA2 = 0.9, 0.999
NESTEROV = (False, True)
DTYPES = ("float32", "float64")
LRS = (1e-3, 0.5)
EPSILONS = (1e-8, 1e-3, 0.1)

Array = npt.NDArray[np.float64]


def draw() -> tuple[Array, Array]:
    """Return theta0 [element] and grads [step, element].

    The gradients' columns: 0-7 of order 1; 8-11 tiny, down to squares that vanish in float32;
    12-15 huge, with squares that are still finite in float32; 16-17 zero; 18-21 zero but for one
    step in twenty; 22-25 zero for the first half, when the bias corrections have moved on; 26-31
    constant, one of them tiny and one huge.
    """
    random = np.random.default_rng(SEED)
    theta0 = random.standard_normal(ELEMENTS)
    grads = random.standard_normal((STEPS, ELEMENTS))
    grads[:, 8:12] *= [1e-12, 1e-14, 1e-17, 1e-20]
    grads[:, 12:16] *= [1e4, 1e7, 1e10, 1e12]
    grads[:, 16:18] = 0
    grads[:, 18:22] *= random.random((STEPS, 4)) < 0.05
    grads[: STEPS // 2, 22:26] = 0
    grads[:, 26:32] = [1, -1, 0.01, -100, 1e-10, 1e8]
    exact = [values.astype(np.float32).astype(np.float64) for values in (theta0, grads)]
    assert np.isfinite(np.square(exact[1].astype(np.float32))).all()
    return exact[0], exact[1]


def run(
    theta0: Array, grads: Array, *, nesterov: bool, dtype: str, lr: float, eps: float
) -> npt.NDArray[np.floating]:
    """Return the parameters after every step, [step, element] in `dtype`."""
    var = tf.Variable(theta0.astype(dtype))
    m, v = tf.Variable(tf.zeros_like(var)), tf.Variable(tf.zeros_like(var))
    theta = []
    # Not tf.cast(beta, dtype): it makes a float32 of a Python float before it casts. Keras's
    # optimizers do that, and so have seven digits in float64 (6e-6 of theta in these cases).
    beta1, beta2 = tf.constant(BETA1, dtype), tf.constant(BETA2, dtype)
    for t, grad in enumerate(grads.astype(dtype), start=1):
        tf.raw_ops.ResourceApplyAdam(
            var=var.handle,
            m=m.handle,
            v=v.handle,
            # Beta is rounded to the dtype, then raised in it: so do Keras's optimizers.
            beta1_power=tf.pow(beta1, tf.cast(t, dtype)),
            beta2_power=tf.pow(beta2, tf.cast(t, dtype)),
            lr=tf.constant(lr, dtype),
            beta1=beta1,
            beta2=beta2,
            epsilon=tf.constant(eps, dtype),
            grad=tf.constant(grad),
            use_nesterov=nesterov,
        )
        theta.append(var.numpy())
    return np.stack(theta)


def main() -> None:
    """Run every case and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/adam_tensorflow.npz")
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    options = parser.parse_args()
    theta0, grads = draw()
    provenance = {
        "kernel": "tf.raw_ops.ResourceApplyAdam",
        "device": "CPU",
        "beta1": BETA1,
        "beta2": BETA2,
        "beta_powers": "tf.pow(tf.constant(beta, dtype), tf.cast(t, dtype)), t from 1",
        "seed": SEED,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "date": options.date,
        "script": "benchmarks/golden_adam_tensorflow.py",
    }
    arrays = {"theta0": theta0, "grads": grads, "provenance": np.array(json.dumps(provenance))}
    for nesterov, dtype, lr, eps in itertools.product(NESTEROV, DTYPES, LRS, EPSILONS):
        key = f"theta/nesterov={int(nesterov)}/{dtype}/lr={lr:g}/eps={eps:g}"
        with tf.device("CPU"):
            arrays[key] = run(theta0, grads, nesterov=nesterov, dtype=dtype, lr=lr, eps=eps)
        assert np.isfinite(arrays[key]).all(), key
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out, allow_pickle=False, **arrays)
    print(f"{options.out.name}: {len(arrays)} arrays, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
