"""Small problems that train in milliseconds, for tests and for the command line in tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import etascope as es
from etascope.engines.base import Engine, Work
from etascope.records import Burst, TrialId, merge
from etascope.state import Packed

Bursts = dict[TrialId, list[Burst]]
States = dict[TrialId, Packed | None]


def line_problem(**changes: object) -> es.Problem:
    """y = 3x with a little noise: linear least squares with one weight and a bias."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(96, 1, generator=generator) * 2 - 1
    y = 3 * x + 0.1 * torch.randn(96, 1, generator=generator)
    settings: dict[str, object] = {
        "model": lambda: nn.Linear(1, 1),
        "loss": lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        "train": (x[:64], y[:64]),
        "valid": (x[64:], y[64:]),
        "batch_size": 8,
        "name": "line",
    }
    return es.Problem(**{**settings, **changes})  # type: ignore[arg-type]


def blobs_problem(**changes: object) -> es.Problem:
    """Three Gaussian blobs, a small network with dropout and batch norm, accuracy as metric."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (360,), generator=generator)
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    points = centres[labels] + 0.4 * torch.randn(360, 2, generator=generator)

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
        )

    settings: dict[str, object] = {
        "model": model,
        "loss": lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1]),
        "metric": lambda m, batch: m(batch[0]).argmax(-1) == batch[1],
        "train": (points[:200], labels[:200]),
        "valid": (points[200:300], labels[200:300]),
        "test": (points[300:], labels[300:]),
        "batch_size": 20,
        "name": "blobs",
    }
    return es.Problem(**{**settings, **changes})  # type: ignore[arg-type]


def slow_blobs() -> es.Problem:
    """The blobs with a pause in every loss, so that a kill lands in the middle."""

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        time.sleep(0.001)
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return blobs_problem(loss=loss)


def children(pid: int) -> set[int]:
    """The processes that a process has started and that are still there."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


def work_of(rates: Iterable[float], target: int, seeds: Iterable[int] = (0,)) -> list[Work]:
    """Work that begins trials, all rates of a seed together."""
    return [Work(TrialId(lr, seed), target) for seed in seeds for lr in rates]


def gather(engine: Engine, work: Iterable[Work], **options: Any) -> tuple[Bursts, States]:
    """The bursts of each trial, and its last state."""
    bursts: Bursts = {}
    states: States = {}
    for burst, state in engine.run(work, **options):
        bursts.setdefault(burst.trial, []).append(burst)
        states[burst.trial] = state
    return bursts, states


def told(bursts: list[Burst], target: int) -> tuple[object, ...]:
    """All that a trial's records say, times aside."""
    history = merge(bursts[0].trial, target, bursts)
    return (
        history.loss.tolist(),
        history.probe_metric.tolist(),
        history.evaluations,
        history.failure,
        [(b.start, b.stop) for b in bursts],
    )


def descendants(pid: int) -> set[int]:
    """The processes that a process and its children have started."""
    return {pid for child in children(pid) for pid in (child, *descendants(child))}


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Return once something is so; an AssertionError after that many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def losses(engine: Engine, work: Iterable[Work]) -> dict[TrialId, list[float]]:
    """The training losses of each trial."""
    found: dict[TrialId, list[float]] = {}
    for burst, _ in engine.run(work):
        found.setdefault(burst.trial, []).extend(burst.loss)
    return found


def deadly(flag: Path, times: int) -> tuple[es.Problem, Callable[..., torch.optim.Optimizer]]:
    """A problem whose worker is killed at step 7 of rate 0.2, so many times, and its optimizer."""
    now = {"lr": 0.0, "step": 0}

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        if model.training and abs(now["lr"] - 0.2) < 1e-9 and now["step"] == 7:
            marks = list(Path(flag).iterdir())
            if len(marks) < times:
                (Path(flag) / str(len(marks))).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return (model(batch[0]) - batch[1]).square().mean()

    def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        made = torch.optim.SGD(model.parameters(), lr=lr)
        now.update(lr=lr, step=0)
        made.register_step_post_hook(lambda *_: now.update(step=now["step"] + 1))
        return made

    return line_problem(loss=loss), optimizer
