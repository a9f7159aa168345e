"""Kill sweeps and finds again and again with SIGKILL, go on, and compare with those never killed.

Each run starts a sweep or a find, kills its coordinator or one of its workers at a random moment,
looks whether anything is left of it after ten seconds, and starts it again until it ends. Its
records must equal those of the uninterrupted one bit for bit, and every step must be in the journal
exactly once. Left behind may be no process, no file in the temporary folder and none in shared
memory. Prints one JSON object; exit status 1 if any differ or anything is left.

    python benchmarks/kills.py --runs 50 --engine serial --engine processes --engine ray
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import etascope as es

WORKERS = 2
LRS = [0.003, 0.03, 0.3, 1e20]  # the last one diverges
STEPS = 240
SECONDS = 10.0  # within which nothing may be left of what was killed
EARLY = 0.2  # the share of kills that come while workers start
TORCHS = f"torchinductor_{getpass.getuser()}"
MARK = "ETASCOPE_KILLS"  # in the environment of all that a run starts


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


def train(out: str, engine: str, command: str) -> None:
    """The sweep or the find that is killed."""
    workers = None if engine == "serial" else WORKERS
    options = {"engine": engine, "workers": workers, "out": out}
    if command == "find":
        es.find(problem(), steps=STEPS, budget=3, **options)
    else:
        es.sweep(problem(), LRS, steps=STEPS, seeds=2, **options)


class Case(NamedTuple):
    """What is run, and the folder that its temporary files go to."""

    engine: str
    command: str
    temporary: Path

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        arguments = ["--train", str(out), "--engine", self.engine, "--command", self.command]
        return subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(self.temporary), MARK: str(self.temporary)},
        )

    def finish(self, out: Path) -> None:
        process = self.start(out)
        _, told = process.communicate()
        if process.returncode:
            sys.exit(f"{self} failed: {told.decode()}")

    def left_behind(self, shared: set[str]) -> list[str]:
        """What is still there ten seconds after the end, or an empty list as soon as nothing is."""
        end = time.monotonic() + SECONDS
        while True:
            left = [f"process {pid}" for pid in marked(self.temporary)]
            # torch makes a folder of its own, for all programs, where its SGD takes a step.
            files = [path for path in self.temporary.iterdir() if path.name != TORCHS]
            left += map(str, files)
            left += sorted(set(os.listdir("/dev/shm")) - shared)
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.1)


def marked(temporary: Path) -> list[int]:
    """The living processes that a run has started, which have its mark in their environment."""
    mark, found = f"{MARK}={temporary}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it has just ended, or is another user's
            continue
    return found


def settled(out: Path) -> str:
    """All records of a study but what a clock says, and where it is."""
    document = es.open_study(out).to_dict()
    document["study"].pop("seconds")
    document.pop("environment")
    (document.get("finding") or {}).pop("study", None)
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


def workers_of(pid: int, engine: str) -> list[int]:
    """The processes that train for a coordinator."""
    children = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has just ended
            children += sorted(map(int, task.read_text().split()))
    if engine != "ray":
        return children
    below = [pid for child in children for pid in (child, *workers_of(child, engine))]
    return [pid for pid in below if name_of(pid).startswith(b"ray::Actor")]


def name_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def trains(out: Path) -> bool:
    """Whether a first burst is in the journal, so that there are workers that train."""
    path = out / "journal.jsonl"
    return path.exists() and b'"burst"' in path.read_bytes()


def killed_run(out: Path, case: Case, chance: random.Random) -> tuple[str, list[str]]:
    """One run with one kill; returns who was killed, or 'none' if it was over before, and what of
    it was left behind.
    """
    shared = set(os.listdir("/dev/shm"))
    process, early = case.start(out), chance.random() < EARLY
    if early:  # while it starts
        time.sleep(chance.uniform(0, 8))
    else:
        while not trains(out) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.5))
    workers = workers_of(process.pid, case.engine)
    who = chance.choice(["coordinator", "worker"]) if workers else "coordinator"
    try:
        os.kill(process.pid if who == "coordinator" else chance.choice(workers), signal.SIGKILL)
    except ProcessLookupError:
        who = "none"
    process.wait()
    left = case.left_behind(shared)
    assert process.stderr is not None
    told = process.stderr.read() if not left else b""
    if process.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"{case} failed: {told.decode()}")
    was_killed = who != "coordinator" or process.returncode == -signal.SIGKILL
    case.finish(out)
    return who if was_killed else "none", left


def trial(case: Case, runs: int, folder: Path, chance: random.Random) -> dict[str, Any]:
    """So many killed runs of a case, and what became of them."""
    whole, kills, left, different = folder / "whole", [], [], 0
    case.finish(whole)
    expected = settled(whole)
    for run in range(runs):
        out = folder / str(run)
        who, remains = killed_run(out, case, chance)
        kills.append(who)
        left += remains
        different += settled(out) != expected or not steps_once(out)
        print(case.engine, case.command, run, who, *remains, file=sys.stderr, flush=True)
    killed = {who: kills.count(who) for who in ("coordinator", "worker", "none")}
    return {
        "engine": case.engine,
        "command": case.command,
        "runs": runs,
        "killed": killed,
        "different": different,
        "left": left,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="in all, shared out evenly")
    parser.add_argument("--engine", action="append", help="may be repeated; processes")
    parser.add_argument("--command", action="append", help="sweep or find; both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    engines, commands = asked.engine or ["processes"], asked.command or ["sweep", "find"]
    if asked.train:
        train(asked.train, engines[0], commands[0])
        return
    chance, told = random.Random(asked.seed), []
    cases = [(engine, command) for engine in engines for command in commands]
    for number, (engine, command) in enumerate(cases):
        runs = asked.runs * (number + 1) // len(cases) - asked.runs * number // len(cases)
        # Ray's sockets need a short name.
        with (
            tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as folder,
            tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary,
        ):
            case = Case(engine, command, Path(temporary))
            told.append(trial(case, runs, Path(folder), chance))
    print(json.dumps(told))
    sys.exit(any(case["different"] or case["left"] for case in told))


if __name__ == "__main__":
    main()
