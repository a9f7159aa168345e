"""Writes a large synthetic study through the journal, then times opening and showing it.

Every trial has its bursts in turn with those of the others, as engines that run several at once
write them: a loss a step (float32 values, as torch gives them), a probe every tenth step, and at
each rung an evaluation with 20 batch losses. Rates from a third of the ladder upward stay at
chance, and the largest twentieth ends non-finite. `etascope show` then runs in fresh processes,
start of Python included. Prints one JSON object: seconds and MB of writing and, repeat by repeat,
wall and processor seconds and peak resident memory of showing, with the environment.

Run: `python benchmarks/large_study.py [--rates 100] [--seeds 100] [--steps 1000] [--bursts 10]
[--repeats 5] [--no-metric] [--json] [--out DIR]`; DIR is kept, and used again if it is there.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from etascope.encoding import STEPS
from etascope.journal import HEADER, JOURNAL, Journal
from etascope.plan import logspace
from etascope.records import Burst, Chance, Evaluation, Failure, ProblemFacts, TrialId

CHANCE = math.log(10)
BATCHES, EXAMPLES, PROBE_EVERY = 20, 1000, 10


def header(steps: int, bursts: int, metric: bool) -> dict[str, object]:
    """Return the header of the study; without a metric, trials are judged by their losses."""
    facts = ProblemFacts(
        name="synthetic",
        fingerprint="0",
        parameters=1,
        batch_shapes=((50, 28, 28, 1), (50,)),
        metric="accuracy" if metric else None,
        higher_is_better=True,
        device="cpu",
        chance=Chance(
            CHANCE,
            "constant prediction",
            (CHANCE,) * BATCHES,
            ((EXAMPLES, 0.11),) if metric else (),
        ),
    )
    rungs = [steps * k // bursts for k in range(1, bursts + 1)]
    plan = {
        "steps": steps,
        "optimizer": "adam",
        "schedule": "constant",
        "clip": None,
        "accumulate": 1,
        "weight_decay": None,
        "rungs": rungs,
        "probe_every": PROBE_EVERY,
        "rung_examples": EXAMPLES,
    }
    return {"reference": None, "problem": asdict(facts), "plan": plan, "environment": {}}


def burst(
    trial: TrialId,
    place: float,
    start: int,
    stop: int,
    noise: np.random.Generator,
    *,
    metric: bool,
    fails: bool,
) -> Burst:
    """Return the records of `start` to `stop`; `place` is where the rate stands, from 0 to 1."""
    skill = 0.0 if place > 0.66 else 0.2 + 0.7 * place
    loss = (
        CHANCE
        * (1 - skill * stop / (stop + 100))
        * np.exp(0.2 * noise.standard_normal(stop - start))
    )
    loss = loss.astype(np.float32).astype(np.float64)
    probes = range(start, stop, PROBE_EVERY)
    correct = int(EXAMPLES * (0.1 + 0.85 * skill))
    losses = (CHANCE * (1 - skill) * (1 + 0.05 * noise.standard_normal(BATCHES))).tolist()
    held_out = Evaluation(
        step=stop,
        split="valid",
        loss=sum(losses) / BATCHES,
        metric=correct / EXAMPLES if metric else None,
        examples=EXAMPLES,
        correct=correct if metric else None,
        batch_losses=tuple(losses),
    )
    if fails:
        loss[-1] = math.inf
    return Burst(
        trial=trial,
        start=start,
        stop=stop - fails,
        loss=tuple(loss.tolist()),
        probe_steps=tuple(probes) if metric else (),
        probe_metric=tuple((noise.integers(0, 51, len(probes)) / 50).tolist()) if metric else (),
        evaluations=() if fails else (held_out,),
        failure=Failure(stop - 1, "non-finite", "0", "it became inf", "lower it")
        if fails
        else None,
        seconds=1.0,
    )


def write(
    directory: Path, *, rates: int, seeds: int, steps: int, bursts: int, metric: bool
) -> None:
    """Write the study, burst by burst over all trials."""
    noise = np.random.default_rng(0)
    ladder = logspace(1e-5, 10, rates)
    place = {lr: number / rates for number, lr in enumerate(ladder)}
    trials = [TrialId(lr, seed) for seed in range(seeds) for lr in ladder]
    with Journal(directory) as journal:
        journal.write_header(header(steps, bursts, metric))
        journal.request(dict.fromkeys(trials, steps))
        for number in range(bursts):
            start, stop = steps * number // bursts, steps * (number + 1) // bursts
            for trial in trials:
                fails = stop == steps and place[trial.lr] > 0.95
                journal.append(
                    burst(trial, place[trial.lr], start, stop, noise, metric=metric, fails=fails)
                )


def show(directory: Path, *options: str) -> dict[str, float]:
    """Run `etascope show` on the study in a fresh process and return what it took."""
    command = [sys.executable, "-m", "etascope.cli", "show", str(directory), *options]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def main() -> None:
    """Write, show, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rates", 100), ("seeds", 100), ("steps", 1000), ("bursts", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-metric", action="store_true", help="judge by losses alone")
    parser.add_argument("--json", action="store_true", help="time show --json")
    parser.add_argument("--out", type=Path, help="where to write the study")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = asked.out or Path(temporary)
        began = time.perf_counter()
        written = not (directory / HEADER).exists()
        if written:
            sizes = {name: getattr(asked, name) for name in ("rates", "seeds", "steps", "bursts")}
            write(directory, **sizes, metric=not asked.no_metric)
        seconds = time.perf_counter() - began
        options = ("--json",) if asked.json else ()
        shown = [show(directory, *options) for _ in range(asked.repeats)]
        result = {
            "settings": {key: str(value) for key, value in vars(asked).items()},
            "write_s": round(seconds, 1) if written else None,
            "journal_mb": round((directory / JOURNAL).stat().st_size / 1e6, 1),
            "steps_mb": round((directory / STEPS).stat().st_size / 1e6, 1),
            "show": shown,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "platform": platform.platform(),
            "cores": os.cpu_count(),
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
