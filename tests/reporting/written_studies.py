"""Studies that were never trained: records written as the coordinator writes them, in no time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from etascope.call import Call
from etascope.journal import Journal
from etascope.records import Burst, Chance, Evaluation, Failure, ProblemFacts, TrialId
from etascope.study import Study, open_study

CHANCE = math.log(10)
BATCH = 50
DEMO = {0.5: 1000, 0.001: 1000, 1e-5: 200, 1e-4: 200, 1e-2: 200, 1e-1: 200, 1.0: 200}
Builder = Callable[..., Study]


def plan(steps: int = 1000, **changes: Any) -> dict[str, Any]:
    rungs = sorted({r for k in range(1, 11) if (r := steps * k // 10)})
    settings = {
        "steps": steps,
        "optimizer": "adam",
        "schedule": "constant",
        "clip": None,
        "accumulate": 1,
        "weight_decay": None,
        "rungs": rungs,
        "probe_every": 10,
        "rung_examples": 1000,
    }
    return {**settings, **changes}


def _skill(lr: float, steps: np.ndarray) -> np.ndarray:
    """How much of chance is learned after each step, in [0, 1): none at 0.03 and above."""
    if lr >= 0.03:
        return np.zeros(len(steps))
    speed = 1.2 * min(lr, 0.001) / 0.001
    ceiling = 0.985 - 0.05 * max(0.0, math.log10(lr / 0.001))
    return ceiling * (1 - 1 / (1 + speed * steps / 25) ** 1.2)


def _losses(lr: float, seed: int, count: int) -> np.ndarray:
    noise = np.random.default_rng([seed, round(-1000 * math.log10(lr)) % 10**6])
    steps = np.arange(count)
    start = 9.0 * np.exp(-steps * min(lr, 0.01) / 0.0002)
    base = CHANCE * (1 - _skill(lr, steps)) + start
    if lr >= 0.03:
        base = CHANCE + 3e4 * lr * (steps / 3) ** 2 * np.exp(-steps / 2.2) + start
    return np.asarray(base * np.exp(0.18 * noise.standard_normal(count)))


def evaluation(
    lr: float,
    step: int,
    split: Any = "valid",
    *,
    seed: int = 0,
    examples: int = 1000,
    metric: bool = True,
) -> Evaluation:
    skill = float(_skill(lr, np.array([step]))[0])
    noise = np.random.default_rng([step, seed, round(-1000 * math.log10(lr)) % 10**6])
    skill *= 1 - 0.01 * abs(float(noise.standard_normal()))
    share = 0.1127 + (0.995 - 0.1127) * skill if skill else 0.1127
    correct = round(share * examples)
    mean = CHANCE * (1 - skill) * (1 if skill else 1.02)
    losses = mean * (1 + 0.05 * noise.standard_normal(examples // BATCH))
    return Evaluation(
        step=step,
        split=split,
        loss=float(losses.mean()),
        metric=correct / examples if metric else None,
        examples=examples,
        correct=correct if metric else None,
        batch_losses=tuple(losses.tolist()),
    )


def burst(
    trial: TrialId,
    step: int,
    settings: Mapping[str, Any],
    *,
    metric: bool = True,
    test: bool = True,
) -> Burst:
    """A trial trained from the start to `step`; a rate of 5 or more breaks at step 37."""
    breaks = trial.lr >= 5
    stop = min(step, 37) if breaks else step
    loss = _losses(trial.lr, trial.seed, stop)
    if breaks:
        loss[-1] = math.inf
    probes = np.arange(0, stop, settings["probe_every"])
    noise = np.random.default_rng([7, trial.seed, step])
    share = 0.1127 + 0.87 * _skill(trial.lr, probes)
    probe = np.clip(np.round((share + 0.03 * noise.standard_normal(len(probes))) * 50) / 50, 0, 1)
    rungs = [r for r in settings["rungs"] if r <= stop]
    found = [
        evaluation(
            trial.lr,
            r,
            seed=trial.seed,
            examples=5000 if r == settings["steps"] else 1000,
            metric=metric,
        )
        for r in rungs
    ]
    if test and stop == settings["steps"]:
        found.append(
            evaluation(trial.lr, stop, "test", seed=trial.seed, examples=10_000, metric=metric)
        )
    failure = None
    if breaks:
        failure = Failure(
            stop,
            "non-finite",
            "layer2.0",
            f"the weights of layer2.0 stopped being finite at step {stop}",
            "use a smaller learning rate",
        )
    return Burst(
        trial=trial,
        start=0,
        stop=stop,
        loss=tuple(loss.tolist()),
        probe_steps=tuple(probes.tolist()) if metric else (),
        probe_metric=tuple(probe.tolist()) if metric else (),
        evaluations=tuple(found),
        failure=failure,
        seconds=0.1 * stop,
    )


def facts(name: str = "mnist-cnn", *, metric: bool = True, **changes: Any) -> ProblemFacts:
    majority = tuple((n, 0.1127) for n in (1000, 5000, 10_000)) if metric else ()
    settings: dict[str, Any] = {
        "name": name,
        "fingerprint": "0f1e2d3c",
        "parameters": 3_274_634,
        "batch_shapes": ((BATCH, 28, 28, 1), (BATCH,)),
        "metric": "accuracy" if metric else None,
        "higher_is_better": True,
        "device": "cpu",
        "chance": Chance(CHANCE, "constant prediction", (CHANCE,) * 100, majority),
    }
    return ProblemFacts(**{**settings, **changes})


def write_study(
    path: Path,
    targets: Mapping[float, int],
    *,
    seeds: Sequence[int] = (0,),
    reference: str | None = "mnist-cnn",
    problem: ProblemFacts | None = None,
    bursts: Sequence[Burst] | None = None,
    reached: Mapping[float, int] | None = None,
    metric: bool = True,
    test: bool = True,
    calls: Sequence[Call] = (),
    **changes: Any,
) -> Study:
    """Write a study in which every rate got to its target, or to the step in `reached`."""
    settings = plan(**changes)
    with Journal(path) as journal:
        journal.write_header(
            {
                "reference": reference,
                "problem": asdict(problem or facts(metric=metric)),
                "plan": settings,
                "environment": {
                    "etascope": "0.1.0",
                    "python": "3.12.1",
                    "torch": "2.9.0",
                    "platform": "Linux",
                    "cpu": "a processor",
                    "cores": 8,
                    "accelerator": None,
                    "threads": 1,
                    "created": "2026-01-02T03:04:05+00:00",
                },
                **({"call": calls[0].to_record()} if calls else {}),
            }
        )
        for call in calls[1:]:
            journal.called(call.to_record())
        trials = {TrialId(lr, seed): step for seed in seeds for lr, step in targets.items()}
        journal.request(trials)
        for trial, target in trials.items():
            step = (reached or {}).get(trial.lr, target)
            if bursts is None and step:
                journal.append(burst(trial, step, settings, metric=metric, test=test))
        for given in bursts or ():
            journal.append(given)
    return open_study(path)
