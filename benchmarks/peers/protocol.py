"""What every peer shares: the experiment, the data, and how it talks with the runner.

A peer is a process of its own. It gets the experiment as JSON in its first argument, prepares
(imports, data, compilation, workers), answers with one line of JSON once its first training step
is done, and then with one line for every line on its input: the seconds of a repeat and how many
steps of one model it made in them. So the runner can interleave the repeats of all peers.

Images are [N, 28, 28, 1] in [0, 1], labels [N].
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

VALID = 5000  # the training images that etascope holds out; the peers leave them out too

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Step = Callable[[Images, Labels], float]


class Experiment(NamedTuple):
    """What is trained: `steps` timed steps at each rate, after `warm_up` that are not timed."""

    lrs: list[float]
    steps: int
    warm_up: int
    batch: int
    options: dict[str, Any]  # what one peer alone understands


class Repeat(NamedTuple):
    """One repeat: the time in training, how many steps of one model it held, the last losses."""

    seconds: float
    model_steps: int
    losses: list[float]


class Prepared(NamedTuple):
    """A peer ready to be timed; `first_step` is the time of its first step, by the clock."""

    repeat: Callable[[], Repeat]
    facts: dict[str, Any]
    first_step: float


class UnavailableError(Exception):
    """The peer cannot run here; the message says why."""


def serve(prepare: Callable[[Experiment], Prepared]) -> None:
    """Be a peer: prepare, then time one repeat for every line on the input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        prepared = prepare(Experiment(**json.loads(sys.argv[1])))
    except UnavailableError as reason:
        answer({"unavailable": str(reason)})
        return
    answer({"first_step": prepared.first_step, "facts": prepared.facts})
    for _ in sys.stdin:
        repeat = prepared.repeat()
        if not all(math.isfinite(loss) for loss in repeat.losses):
            raise FloatingPointError(f"a loss is not finite: {repeat.losses}")
        answer(repeat._asdict())


def training_data() -> tuple[Images, Labels]:
    """The training images of mnist-cnn and their labels."""
    from etascope.data.mnist import load_mnist

    data = load_mnist()
    images = data.train_images[VALID:].astype(np.float32)[..., None] / np.float32(255)
    return images, data.train_labels[VALID:].astype(np.int64)


def batches(images: Images, labels: Labels, batch: int) -> Iterator[tuple[Images, Labels]]:
    """Batches without end, in a fresh order each epoch; the same for every rate and peer."""
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(len(images))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            yield images[chosen], labels[chosen]


def one_rate_at_a_time(start: Callable[[float], Step], experiment: Experiment) -> Prepared:
    """The peer that trains one rate after another in this process.

    Args:
        start: `start(lr)` sets weights and optimizer to their beginning and returns the step.
        experiment: what is trained.
    """
    data = training_data()

    def repeat() -> Repeat:
        seconds, losses = 0.0, []
        for lr in experiment.lrs:
            step, stream = start(lr), batches(*data, experiment.batch)
            for _ in range(experiment.warm_up):
                step(*next(stream))
            began = time.perf_counter()
            for _ in range(experiment.steps):
                loss = step(*next(stream))
            seconds += time.perf_counter() - began
            losses.append(loss)
        return Repeat(seconds, experiment.steps * len(experiment.lrs), losses)

    start(experiment.lrs[0])(*next(batches(*data, experiment.batch)))
    return Prepared(repeat, {}, time.time())
