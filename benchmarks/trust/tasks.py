"""The tasks of the trust benchmark: each a ready-made problem, an optimizer and a horizon.

The methods are judged on these. What `find` does was worked out on the tasks of `DEVELOPMENT`,
which share no combination of problem and optimizer with the judged ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import etascope as es

PER_DECADE = 4  # rates of the ground truth
TRUTH_SEEDS = (1000, 1001, 1002, 1003, 1004)  # no method trains with these
DECADES = {"sgd": (-4, 2), "sgd-momentum": (-5, 1), "sgd-nesterov": (-5, 1), "adagrad": (-4, 2)}


@dataclass(frozen=True)
class Task:
    """What is trained, how, and for how long.

    Attributes:
        problem: the name of a ready-made problem.
        optimizer: the name of an optimizer.
        steps: the horizon.
        options: further fields of the plan.
    """

    problem: str
    optimizer: str
    steps: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As files and tables call it."""
        return "-".join([self.problem, self.optimizer, *map(str, self.options.values())])

    @property
    def plan(self) -> dict[str, Any]:
        """The keyword arguments of `es.find` and `es.sweep`."""
        return {"steps": self.steps, "optimizer": self.optimizer, **self.options}

    @property
    def lrs(self) -> tuple[float, ...]:
        """The rates of the ground truth: six decades, four a decade."""
        low, high = DECADES.get(self.optimizer, (-5, 1))
        return es.logspace(10.0**low, 10.0**high, (high - low) * PER_DECADE + 1)


JUDGED = {
    task.name: task
    for task in (
        Task("mnist-cnn", "adam", 60),
        Task("mnist-mlp", "sgd", 800),
        Task("mnist-mlp", "adamw", 800, {"schedule": "cosine"}),
        Task("mnist-batchnorm", "sgd-momentum", 400),
        Task("mnist-batchnorm", "adam", 400, {"schedule": "one-cycle"}),
        Task("mnist-lstm", "adam", 500),
        Task("mnist-lstm", "sgd-nesterov", 500, {"clip": 1.0}),
        Task("diabetes", "adam", 500),
        Task("char-transformer", "adamw", 200, {"schedule": "linear-warmup"}),
        Task("char-transformer", "sgd-momentum", 200),
        Task("quadratic", "sgd-momentum", 500),
    )
}
DEVELOPMENT = {
    task.name: task
    for task in (
        Task("mnist-mlp", "adam", 400),
        Task("mnist-mlp", "sgd-nesterov", 400, {"schedule": "linear-warmup"}),
        Task("mnist-batchnorm", "sgd", 200),
        Task("mnist-batchnorm", "rmsprop", 200, {"schedule": "cosine"}),
        Task("mnist-lstm", "adamw", 250, {"schedule": "cosine"}),
        Task("char-transformer", "adam", 100, {"schedule": "cosine"}),
        Task("diabetes", "sgd-momentum", 400),
        Task("diabetes", "adagrad", 300),
        Task("quadratic", "sgd", 400),
        Task("quadratic", "adam", 400),
        Task("mnist-cnn", "sgd-momentum", 40),
    )
}
