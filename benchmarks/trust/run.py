"""Run every method on every judged task from five starting seeds; `docs/trust.md` is made of it.

    python benchmarks/trust/run.py [--shard K/N] [--work DIR] [--method NAME ...] [--task NAME ...]

What is in DIR (by default studies/trust/runs) is not run again, so it may be cut off, and shards
may run side by side. Each suggestion of `find` is then trained with a fresh seed. What is there in
the end takes the place of the same runs in `data/results.jsonl`, one a line, and the machine is
noted beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from methods import METHODS, Answer
from tasks import JUDGED, Task

import etascope as es
from etascope.diagnosis.chance import failed
from etascope.encoding import to_json
from etascope.environment import describe_environment
from etascope.plan import Plan
from etascope.problems.checks import inspect
from etascope.records import TrialId, merge
from etascope.trial import Trial

DATA = Path(__file__).parent / "data"
SEEDS = range(5)
FRESH = 2000  # plus the starting seed: neither a method nor the ground truth trains with it


def fresh_training(task: Task, lr: float, seed: int) -> dict[str, object]:
    """The final held-out loss of a suggestion with a seed of its own, and whether it failed."""
    problem, plan = es.get_problem(task.problem), Plan(**task.plan, rungs=(task.steps,))
    trial = TrialId(lr, FRESH + seed)
    burst = Trial(problem, plan, trial).advance(task.steps)
    history = merge(trial, task.steps, [burst])
    end = history.evaluation("valid")
    lost = failed(history, inspect(problem, plan.rung_examples).chance)
    return {"loss": end.loss if end else None, "failed": lost}


def measure(method: str, task: Task, seed: int) -> dict[str, object]:
    """One run of a method: its answer, or the error that it ended with."""
    began = time.perf_counter()
    error = None
    try:
        answer = METHODS[method](task, seed)
    except Exception as raised:  # noqa: BLE001 - no answer is a result, too
        answer, error = Answer(None, 0.0), f"{type(raised).__name__}: {raised}"[:300]
    result = {
        "method": method,
        "task": task.name,
        "seed": seed,
        "lr": answer.lr,
        "cost": answer.cost,
        "seconds": time.perf_counter() - began,
        "error": error,
        "finding": answer.finding,
    }
    if answer.finding is not None and answer.lr is not None:
        result["fresh"] = fresh_training(task, answer.lr, seed)
    return result


def main() -> None:
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shard", default="0/1", help="the part of the runs to do, as K/N")
    parser.add_argument("--method", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--task", nargs="*", default=list(JUDGED), choices=JUDGED)
    parser.add_argument("--work", type=Path, default=Path("studies/trust/runs"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, given.shard.split("/"))
    # All runs of a task and a seed fall to one shard, since those of find share a study.
    shares = list(enumerate((name, seed) for seed in SEEDS for name in JUDGED))
    runs = [(k, m, name, s) for m in given.method for k, (name, s) in shares if name in given.task]
    for number, method, name, seed in runs:
        slug = "".join(c if c.isalnum() else "-" for c in f"{method}-{name}-{seed}")
        path = given.work / f"{slug}.json"
        if number % parts != part or path.exists():
            continue
        result = measure(method, JUDGED[name], seed)
        path.write_text(json.dumps(to_json(result)) + "\n")
        print(
            method, name, seed, result["lr"], f"{result['cost']:.2f}", result["error"], flush=True
        )
    gather(given.work)


def gather(work: Path) -> None:
    """The runs of `work` and, of those gathered before, the others; by method, task and seed."""
    path = DATA / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    lines += [run.read_text() for run in work.glob("*.json")]
    named = {(r["method"], r["task"], r["seed"]): r for r in map(json.loads, lines)}
    runs = list(named.values())
    order = {name: place for place, name in enumerate(METHODS)}
    runs.sort(key=lambda run: (order[run["method"]], run["task"], run["seed"]))
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
    (DATA / "environment.json").write_text(json.dumps(describe_environment(), indent=1) + "\n")


if __name__ == "__main__":
    main()
