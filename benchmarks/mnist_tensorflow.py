"""Trains the network of mnist-cnn in TensorFlow, to set etascope's curves beside another's.

The network, its initial distribution, the data and the batch size are those of the built-in
experiment; the update is TensorFlow's own kernel, ResourceApplyAdam. The random numbers are
TensorFlow's, so the curves agree in shape and level, not number by number. Both rates start from
the same weights and see the same batches and dropout masks. Writes one compact JSON file.

Images are [N, 28, 28, 1], labels [N].

Run: `python benchmarks/mnist_tensorflow.py [--data DIR] [--out FILE] [--threads 2] [--seed 0]`,
in an environment with tensorflow-cpu; etascope is not needed.
"""

import argparse
import datetime
import gzip
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported

import numpy as np
import numpy.typing as npt
import tensorflow as tf

ROOT = Path(__file__).resolve().parent.parent
LRS = (0.5, 0.001)
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
BATCH, KEEP_PROB, VALID = 50, 0.5, 5000  # the first VALID images are held out of the training
ACCURACY_EVERY = 10
SHAPES = ((5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,), (3136, 1024), (1024,), (1024, 10), (10,))
NETWORK = (
    "Input [50, 28, 28, 1] in [0, 1]; conv 5x5 SAME 1-32, bias, ReLU, max pool 2x2; conv 5x5 SAME "
    "32-64, bias, ReLU, max pool 2x2; dense 3136-1024, ReLU; dropout keep_prob 0.5; dense 1024-10; "
    "softmax cross-entropy; weights truncated normal (sigma 0.1, cut at 2 sigma), biases 0.1; "
    "tf.raw_ops.ResourceApplyAdam with beta1 0.9, beta2 0.999, epsilon 1e-8."
)

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]


class Data(NamedTuple):
    """Images to train and to test with, each with its labels."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Return the array of an IDX file of unsigned bytes: two zeros, the type, the rank, sizes."""
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load(directory: Path) -> Data:
    """Return the training images after the held-out ones, and all the test images."""
    train, test = (
        (
            (read_idx(directory / f"{part}-images-idx3-ubyte.gz") / np.float32(255))[..., None],
            read_idx(directory / f"{part}-labels-idx1-ubyte.gz").astype(np.int32),
        )
        for part in ("train", "t10k")
    )
    return Data(train[0][VALID:], train[1][VALID:], *test)


def batches(data: Data, seed: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """Yield training batches without end, in a fresh order each epoch."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(data.train_images))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            yield tf.constant(data.train_images[chosen]), tf.constant(data.train_labels[chosen])


class Training:
    """The network's variables with Adam's slots, and the graphs that train and measure it."""

    def __init__(self, lr: float, seed: int) -> None:
        self.lr, self.seed = lr, seed
        self.params = [
            tf.Variable(
                # Redraws what lies beyond two standard deviations, which is the cut at 2 sigma.
                tf.random.stateless_truncated_normal(shape, (seed, index), stddev=0.1)
                if len(shape) > 1
                else tf.fill(shape, 0.1)
            )
            for index, shape in enumerate(SHAPES)
        ]
        self.m = [tf.Variable(tf.zeros_like(p)) for p in self.params]
        self.v = [tf.Variable(tf.zeros_like(p)) for p in self.params]

    def logits(self, images: tf.Tensor, mask_seed: tf.Tensor | None = None) -> tf.Tensor:
        """Return the logits [batch, 10]; without a seed for its mask, dropout is off."""
        conv1, bias1, conv2, bias2, dense, dense_bias, out, out_bias = self.params
        hidden = images
        for kernel, bias in ((conv1, bias1), (conv2, bias2)):
            hidden = tf.nn.relu(tf.nn.conv2d(hidden, kernel, 1, "SAME") + bias)
            hidden = tf.nn.max_pool2d(hidden, 2, 2, "SAME")
        hidden = tf.nn.relu(tf.reshape(hidden, (-1, 3136)) @ dense + dense_bias)
        if mask_seed is not None:
            hidden = tf.nn.experimental.stateless_dropout(hidden, 1 - KEEP_PROB, mask_seed)
        return hidden @ out + out_bias

    @tf.function
    def step(self, images: tf.Tensor, labels: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        """Make update number `t`, from 1, and return the loss that it was computed from."""
        with tf.GradientTape() as tape:
            # The first part is not that of the weights' seeds, so that no mask repeats a weight.
            logits = self.logits(images, tf.stack((self.seed + 1, t)))
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        grads = tape.gradient(loss, self.params)
        for param, m, v, grad in zip(self.params, self.m, self.v, grads, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=param.handle,
                m=m.handle,
                v=v.handle,
                beta1_power=tf.pow(BETA1, tf.cast(t, tf.float32)),
                beta2_power=tf.pow(BETA2, tf.cast(t, tf.float32)),
                lr=self.lr,
                beta1=BETA1,
                beta2=BETA2,
                epsilon=EPSILON,
                grad=grad,
                use_nesterov=False,
            )
        return loss

    @tf.function(reduce_retracing=True)
    def accuracy(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Return the share of images whose largest logit is the label's, dropout off."""
        chosen = tf.argmax(self.logits(images), axis=-1, output_type=labels.dtype)
        return tf.reduce_mean(tf.cast(chosen == labels, tf.float32))


def number(value: float, digits: int = 6) -> float | str:
    """Return the value at `digits` significant digits; strict JSON has no non-finite numbers."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else str(value)


def train(data: Data, *, lr: float, steps: int, seed: int) -> dict[str, Any]:
    """Train at one rate and return its curve."""
    training = Training(lr, seed)
    losses, accuracy_steps, accuracies = [], [], []
    for index, (images, labels) in zip(range(steps), batches(data, seed), strict=False):
        if index % ACCURACY_EVERY == 0:
            accuracy_steps.append(index)
            accuracies.append(float(training.accuracy(images, labels)))
        losses.append(float(training.step(images, labels, tf.constant(index + 1))))
    parts = range(0, len(data.test_images), 1000)  # equal parts, so the mean of means is the mean
    test = [
        float(training.accuracy(data.test_images[k : k + 1000], data.test_labels[k : k + 1000]))
        for k in parts
    ]
    return {
        "lr": lr,
        "steps": steps,
        "loss": [number(loss) for loss in losses],
        "accuracy_steps": accuracy_steps,
        "accuracy": [number(value) for value in accuracies],
        "test_accuracy": number(sum(test) / len(test)),
    }


def cpu() -> str:
    """Return the name of the processor, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Train at both rates and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "src/etascope/data/mnist")
    default_out = ROOT / "src/etascope/reporting/reference/mnist_tensorflow.json"
    parser.add_argument("--out", type=Path, default=default_out)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    data = load(options.data)
    curves = []
    for lr in LRS:
        start = time.perf_counter()
        curves.append(train(data, lr=lr, steps=options.steps, seed=options.seed))
        seconds = time.perf_counter() - start
        print(f"lr {lr:g}: test accuracy {curves[-1]['test_accuracy']:.4f}, {seconds:.0f} s")
    provenance = {
        "framework": "TensorFlow",
        "version": tf.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu(),
        "threads": options.threads,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python benchmarks/mnist_tensorflow.py", *sys.argv[1:]]),
        "network": NETWORK,
        "seed": options.seed,
    }
    text = json.dumps(
        {"provenance": provenance, "curves": curves}, separators=(",", ":"), allow_nan=False
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
