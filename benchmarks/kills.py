"""Kill a sweep again and again with SIGKILL, go on, and compare with the run never killed.

Each run starts a sweep, kills its coordinator or one of its workers at a random moment, and starts
it again until it ends. Its records must equal those of the uninterrupted sweep bit for bit, and
every step must be in the journal exactly once. Prints one JSON object; exit status 1 if any differ.

    python benchmarks/kills.py --runs 50 --engine processes
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import etascope as es

WORKERS = 2
LRS = [0.003, 0.03, 0.3, 1e20]  # the last one diverges
STEPS = 240


def problem() -> es.Problem:
    """Three Gaussian blobs, dropout and batch norm: a step of about a millisecond."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (3000,), generator=generator)
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    points = centres[labels] + 0.4 * torch.randn(3000, 2, generator=generator)

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 3)
        )

    def loss(m: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        time.sleep(0.001)  # long enough for a kill to land inside
        return nn.functional.cross_entropy(m(batch[0]), batch[1])

    return es.Problem(
        model=model,
        loss=loss,
        metric=lambda m, batch: m(batch[0]).argmax(-1) == batch[1],
        train=(points[:2000], labels[:2000]),
        valid=(points[2000:], labels[2000:]),
        name="blobs",
    )


def sweep(out: str, engine: str) -> None:
    """The sweep that is killed."""
    workers = None if engine == "serial" else WORKERS
    es.sweep(problem(), LRS, steps=STEPS, seeds=2, engine=engine, workers=workers, out=out)


def start(out: Path, engine: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--sweep", str(out), "--engine", engine]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def finish(out: Path, engine: str) -> None:
    process = start(out, engine)
    _, told = process.communicate()
    if process.returncode:
        sys.exit(f"the sweep failed: {told.decode()}")


def settled(out: Path) -> str:
    """All records of a study but what a clock says."""
    document = es.open_study(out).to_dict()
    document["study"].pop("seconds")
    document.pop("environment")
    for trial in document["trials"]:
        trial.pop("seconds")
    return json.dumps(document, sort_keys=True)


def steps_once(out: Path) -> bool:
    """Whether the bursts of each trial follow on without a gap or a step told twice."""
    reached: dict[tuple[float, int], int] = {}
    for line in (out / "journal.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "burst":
            trial = (record["lr"], record["seed"])
            if record["start"] != reached.get(trial, 0):
                return False
            reached[trial] = record["stop"]
    return True


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for task in tasks for child in task.read_text().split())


def size(out: Path) -> int:
    path = out / "journal.jsonl"
    return path.stat().st_size if path.exists() else 0


def killed_run(out: Path, engine: str, chance: random.Random) -> str:
    """One sweep with one kill; returns who was killed, or 'none' if it was over before."""
    process, seen = start(out, engine), size(out)
    while size(out) == seen and process.poll() is None:
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 1.5))
    workers = children(process.pid)
    who = chance.choice(["coordinator", "worker"]) if workers else "coordinator"
    try:
        os.kill(process.pid if who == "coordinator" else chance.choice(workers), signal.SIGKILL)
    except ProcessLookupError:
        who = "none"
    _, told = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"the sweep failed: {told.decode()}")
    was_killed = who != "coordinator" or process.returncode == -signal.SIGKILL
    finish(out, engine)
    return who if was_killed else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--engine", default="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweep", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.sweep:
        sweep(asked.sweep, asked.engine)
        return
    chance, kills, different = random.Random(asked.seed), [], 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        finish(whole, asked.engine)
        expected = settled(whole)
        for run in range(asked.runs):
            out = Path(folder) / str(run)
            kills.append(killed_run(out, asked.engine, chance))
            different += settled(out) != expected or not steps_once(out)
    told = {who: kills.count(who) for who in ("coordinator", "worker", "none")}
    print(
        json.dumps(
            {"engine": asked.engine, "runs": asked.runs, "killed": told, "different": different}
        )
    )
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
