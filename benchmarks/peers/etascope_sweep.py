"""etascope: `es.sweep` itself.

Its time is a difference: a sweep of `warm_up + steps` steps less one of `warm_up` steps, each from
the first step that the coordinator hears of to the return. What both do (building models, the last
evaluation) cancels; what grows with training stays, with everything that etascope does around it.
The longer sweep has one rung more: a checkpoint, a record in the journal and one evaluated batch
for every `steps` steps.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol import Experiment, Prepared, Repeat, UnavailableError, serve

import etascope as es

PROBLEM = f"{Path(__file__).with_name('mnist_problem.py')}:problem"


class FirstStep:
    """Notes when the coordinator first heard of a step; to all else it is told, it is deaf."""

    at: float | None = None  # by the clock on the wall
    began: float  # by the clock that never jumps

    def tick(self, *step: Any) -> None:
        """Note the time."""
        if self.at is None:
            self.at, self.began = time.time(), time.perf_counter()

    burst = tick

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Stand in for every other method of `coordinator.Progress`."""
        return lambda *told: None


def prepare(experiment: Experiment) -> Prepared:
    """Load the problem and run a sweep of a step, for the time of its first step."""
    import torch

    problem = es.get_problem(PROBLEM)

    def sweep(steps: int) -> tuple[FirstStep, float, es.Study]:
        first = FirstStep()
        with tempfile.TemporaryDirectory() as folder:
            study = es.sweep(
                problem,
                experiment.lrs,
                steps=steps,
                rungs=[experiment.warm_up],
                probe_every=steps + 1,
                rung_examples=experiment.batch,
                out=Path(folder) / "study",
                progress=first,
                **experiment.options,
            )
            return first, time.perf_counter() - first.began, study

    def repeat() -> Repeat:
        _, short, _ = sweep(experiment.warm_up)
        _, long, study = sweep(experiment.warm_up + experiment.steps)
        losses = [float(history.loss[-1]) for history in study.trials]
        return Repeat(long - short, experiment.steps * len(experiment.lrs), losses)

    try:
        first, _, _ = sweep(1)
    except TypeError as error:
        raise UnavailableError(f"this etascope lacks the option ({error})") from error
    facts = {"etascope": es.__version__, "torch": torch.__version__}
    facts |= {
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
    }
    return Prepared(repeat, facts, first.at)


if __name__ == "__main__":
    serve(prepare)
