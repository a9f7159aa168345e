"""Keras 3 on TensorFlow: `model.fit` as a user writes it, timed from batch to batch inside."""

import os
import time

os.environ["KERAS_BACKEND"] = "tensorflow"  # read when Keras is imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from keras import layers
from protocol import Experiment, Prepared, Repeat, serve, training_data


class Clock(keras.callbacks.Callback):
    """Notes when each batch was done, with its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self.loss = float("nan")
        self._total = 0.0

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Note the time; asking for the loss waits for the batch."""
        total = float((logs or {})["loss"]) * (batch + 1)  # Keras logs the mean of the epoch so far
        self.loss, self._total = total - self._total, total
        self.times.append(time.perf_counter())


def network() -> keras.Model:
    """Return the network of mnist-cnn."""
    weights = {
        "kernel_initializer": keras.initializers.TruncatedNormal(stddev=0.1, seed=0),
        "bias_initializer": keras.initializers.Constant(0.1),
    }
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 5, padding="same", activation="relu", **weights),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 5, padding="same", activation="relu", **weights),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(1024, activation="relu", **weights),
            layers.Dropout(0.5),
            layers.Dense(10, **weights),
        ]
    )


def prepare(experiment: Experiment) -> Prepared:
    """Compile the model once; a repeat sets weights, optimizer and rate back for each rate."""
    images, labels = training_data()
    model = network()
    model.compile(
        keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    initial = model.get_weights()

    def fit(lr: float, steps: int) -> Clock:
        model.set_weights(initial)
        for variable in model.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        model.optimizer.learning_rate = lr
        clock, examples = Clock(), steps * experiment.batch
        model.fit(
            images[:examples],
            labels[:examples],
            batch_size=experiment.batch,
            verbose=0,
            callbacks=[clock],
        )
        return clock

    def repeat() -> Repeat:
        seconds, losses = 0.0, []
        for lr in experiment.lrs:
            clock = fit(lr, experiment.warm_up + experiment.steps)
            seconds += clock.times[-1] - clock.times[experiment.warm_up - 1]
            losses.append(clock.loss)
        return Repeat(seconds, experiment.steps * len(experiment.lrs), losses)

    fit(experiment.lrs[0], 1)
    facts = {
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "threads": "TensorFlow's own",
        "jit_compile": model.jit_compile,
    }
    return Prepared(repeat, facts, time.time())


if __name__ == "__main__":
    serve(prepare)
