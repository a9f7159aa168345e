"""Times what makes a worker's step fast, adding one thing at a time.

As many processes as there are cores train mnist-cnn at once, one thread each, so that they share
the memory as workers do; the variants take turns in every round. Prints milliseconds a step of one
model: the median over processes, rates and rounds, and the quartiles. Five minutes.

    python benchmarks/tuning.py [--rounds 2] [--steps 60]
"""

import argparse
import os
import statistics
import subprocess
import sys
from typing import NamedTuple

from runner import surroundings

from etascope.engines.crew import ENVIRONMENT, TUNABLES
from etascope.environment import usable_cores

LRS = (1e-5, 2e-4, 1e-3)
WARM_UP = 10
THREAD = {name: value for name, value in ENVIRONMENT.items() if "THREADS" in name}
PAGES = {"GLIBC_TUNABLES": TUNABLES}


class Variant(NamedTuple):
    """A way to train: what is set in the process's environment, and what it does with layouts."""

    name: str
    env: dict[str, str]
    layout: str = "first"
    precision: str = "float32"
    processes: int = usable_cores()


VARIANTS = (
    Variant("a plain process a core", THREAD),
    Variant("+ glibc keeps its memory", ENVIRONMENT),
    Variant("+ large pages", ENVIRONMENT | PAGES),
    Variant("+ channels last", ENVIRONMENT | PAGES, "last"),
    Variant("+ gradients turned once", ENVIRONMENT | PAGES, "turned"),
    Variant("+ bfloat16", ENVIRONMENT | PAGES, "turned", "bfloat16"),
    Variant("all but bfloat16, the other cores idle", ENVIRONMENT | PAGES, "turned", processes=1),
    Variant("bfloat16, the other cores idle", ENVIRONMENT | PAGES, "turned", "bfloat16", 1),
)


def child(layout: str, precision: str, steps: int) -> None:
    """Train, and print the milliseconds a step of each rate."""
    import time
    from dataclasses import replace

    import torch
    from peers.mnist_problem import problem

    from etascope.plan import Plan
    from etascope.problems import problem as module
    from etascope.problems.mnist_cnn import MnistCNN
    from etascope.records import TrialId
    from etascope.trial import Trial

    class ChannelsFirst(MnistCNN):
        """The same network on images that are taken for channels-first ones."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.view(-1, 1, 28, 28).permute(0, 2, 3, 1))

    subject = problem()
    if layout == "first":
        module.with_channels_last = lambda model: model
        subject = replace(subject, model=ChannelsFirst)
    elif layout == "last":
        module.with_channels_last = lambda model: model.to(memory_format=torch.channels_last)
    torch.set_num_threads(1)
    # Stopped before its first rung, a burst evaluates nothing.
    plan = Plan(steps=4000, rungs=[3999], probe_every=4001, precision=precision)
    sys.stdin.readline()  # all start together
    for lr in LRS:
        trial = Trial(subject, plan, TrialId(lr, 0))
        for count in (WARM_UP, steps):
            left = iter(range(count - 1))
            began = time.perf_counter()
            trial.advance(3999, stopping=lambda left=left: next(left, None) is None)
        print((time.perf_counter() - began) / steps * 1e3, flush=True)


def measure(variant: Variant, steps: int) -> list[float]:
    """Return what the processes of a variant, run at once, measured."""
    command = [sys.executable, __file__, "--child", variant.layout, variant.precision]
    running = [
        subprocess.Popen(
            [*command, "--steps", str(steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=surroundings(variant.env),
            text=True,
        )
        for _ in range(variant.processes)
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [float(line) for process in running for line in process.communicate()[0].split()]


def main() -> None:
    """Measure the variants in turns and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.steps)
        return
    print(f"load before: {os.getloadavg()[0]:.2f}")
    measured: dict[str, list[float]] = {variant.name: [] for variant in VARIANTS}
    for _ in range(options.rounds):
        for variant in VARIANTS:
            measured[variant.name] += measure(variant, options.steps)
    for name, times in measured.items():
        low, middle, high = statistics.quantiles(times, n=4)
        print(f"{name:40} {middle:6.1f}  ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
