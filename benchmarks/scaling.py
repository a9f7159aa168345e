"""What bounds a study on many machines: costs measured on Ray, then a simulation fed with them.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json

The first part starts a Ray cluster on loopback and measures what the coordinator does for a trial:
a call to an actor, a small answer, a state into and out of the object store, a line of the journal
and a checkpoint with their fsync. The second part trains a small study for real and compares its
makespan with the simulated one. The third simulates growing numbers of machines.

The model, in words: a worker trains a rung, then its state crosses the coordinator's network link
(one link, first come, first served), then the coordinator (one thread, first come, first served)
takes the message, writes the checkpoint and the journal. A worker is at most AHEAD rungs ahead of
the coordinator, as in the Ray engine. Every cost is a constant: its measured median.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import ray
import torch
from large_study import header
from torch import nn

import etascope as es
from etascope.checkpoints import Checkpoints
from etascope.encoding import encode_burst, seal
from etascope.engines.base import Work
from etascope.engines.ray import AHEAD, RayEngine
from etascope.engines.ray_actor import Message, as_array
from etascope.engines.ray_cluster import connected
from etascope.journal import Journal
from etascope.plan import Plan
from etascope.records import Burst, Evaluation, TrialId
from etascope.state import TrialState, pack

WRITERS = 4
STATE_BYTES = 40_000_000  # mnist-cnn with Adam: 3.3 million weights and two moments, float32
ROUNDS = 30


# Measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """Seconds of the coordinator's thread unless said otherwise."""

    message: float  # hand a call to an actor and take its small answer
    state_in: float  # take a state out of the object store (its bytes are mapped, not copied)
    pack: float  # on a worker: make the bytes of a state and put them into the object store
    checkpoint: float  # write a state and fsync
    checkpoint_beside: float  # the same on one of WRITERS threads that all do
    journal: float  # append the line of a burst of 100 steps and fsync
    encode: float  # of this, making the line

    @classmethod
    def of(cls, found: dict[str, dict[str, float]]) -> Costs:
        """The medians of what `measure` found."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: found[name]["median"] for name in names})


def spread(seconds: list[float]) -> dict[str, float]:
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return {"n": len(seconds), "median": median, "quartile1": low, "quartile3": high}


def timed(action: Callable[[], Any], rounds: int = ROUNDS) -> dict[str, float]:
    """The time of an action: median and quartiles over the rounds, after two to warm up."""
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return spread(seconds[2:])


def some_state() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, STATE_BYTES, np.uint8)


def some_burst() -> Burst:
    """A burst of 100 steps, a tenth of them with a metric, and one evaluation."""
    losses = tuple(random.Random(0).random() for _ in range(100))
    held_out = Evaluation(100, "valid", 0.5, 0.9, 1000, 900, losses[:20])
    probes = tuple(range(0, 100, 10))
    return Burst(TrialId(0.1, 0), 0, 100, losses, probes, losses[:10], (held_out,), None, 1.0)


class Echo:
    """An actor that answers at once."""

    def __init__(self) -> None:
        self.burst, self.state = some_burst(), some_state()

    def small(self) -> Message:
        return Message(self.burst, None)

    def large(self) -> Message:
        return Message(self.burst, self.state)

    def take(self, message: Message) -> int:
        return int(message.state[0])

    def pack(self) -> float:
        """Seconds to make the bytes of a state and put them into the object store."""
        weights = torch.from_numpy(self.state.view(np.float32))
        start = time.perf_counter()
        ray.put(as_array(pack(TrialState(0, 0, 0, {"weights": weights}, {}, {}, None))))
        return time.perf_counter() - start


def measure_ray() -> dict[str, dict[str, float]]:
    """What messages and states cost on a loopback cluster."""
    found: dict[str, dict[str, float]] = {}
    with connected(None, 2):
        echo = ray.remote(num_cpus=1)(Echo).remote()
        ray.get(echo.small.remote())
        found["round trip"] = timed(lambda: ray.get(echo.small.remote()))
        queue: SimpleQueue[Any] = SimpleQueue()

        def messages() -> float:
            """Calls and answers as the engine makes them, many at a time."""
            start = time.perf_counter()
            for _ in range(1000):
                echo.small.remote().future().add_done_callback(queue.put)
            for _ in range(1000):
                queue.get().result()
            return (time.perf_counter() - start) / 1000

        found["message"] = spread([messages() for _ in range(7)][2:])
        found["state, worker to driver"] = timed(lambda: ray.get(echo.large.remote()), 15)
        references = deque(echo.large.remote() for _ in range(17))
        ray.wait(list(references), num_returns=17)
        found["state_in"] = timed(lambda: ray.get(references.popleft()), 15)
        message = ray.put(Message(None, some_state()))
        found["state, driver to worker"] = timed(lambda: ray.get(echo.take.remote(message)), 15)
        found["pack"] = spread([ray.get(echo.pack.remote()) for _ in range(15)])
    return found


def measure_disk(directory: Path) -> dict[str, dict[str, float]]:
    """What the journal and checkpoints cost, each with its fsync."""
    burst, data = some_burst(), memoryview(some_state())
    found = {"encode": timed(lambda: seal(encode_burst(burst, 0, None)[0]), 100)}
    with Journal(directory) as journal:
        journal.write_header(header(1000, 10, metric=True))
        found["journal"] = timed(lambda: journal.append(burst), 100)
    checkpoints = Checkpoints(directory)

    def save(step: int, beside: int) -> float:
        start = time.perf_counter()
        checkpoints.save(burst.trial, step, data)
        checkpoints.drop(burst.trial, step - beside)
        return time.perf_counter() - start

    found["checkpoint"] = spread([save(step, 1) for step in range(20)])
    with ThreadPoolExecutor(WRITERS) as pool:
        rounds = pool.map(lambda step: save(step, WRITERS), range(100, 100 + 8 * WRITERS))
        found["checkpoint_beside"] = spread(list(rounds))
    return found


# Simulating -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Design:
    """Where states go, and how the coordinator writes."""

    name: str
    saves_every: int = 1  # rungs between two checkpoints of a trial; else states stay on the node
    shared_storage: bool = False  # workers write the checkpoints there, states do not travel
    writers: int = 0  # threads of the coordinator that write checkpoints; 0: its one thread does
    group_commit: bool = False  # one fsync for all the lines that wait


DESIGNS = (
    Design("present"),
    Design("group commit", group_commit=True),
    Design(f"{WRITERS} writers", writers=WRITERS),
    Design("every 5th rung", saves_every=5),
    Design(f"every 5th rung, {WRITERS} writers", saves_every=5, writers=WRITERS),
    Design("shared storage", shared_storage=True),
    Design("shared storage, group commit", shared_storage=True, group_commit=True),
)


@dataclass(frozen=True)
class Cluster:
    """Machines, their network, and the trials."""

    machines: int
    gigabits: float
    cores: int = 16
    rungs: int = 10
    rung_seconds: float = 60.0
    jitter: float = 0.05  # relative spread of a rung's time
    trials_a_worker: int = 3
    state_bytes: int = STATE_BYTES
    storage_bytes_a_second: float = 20e9  # shared storage, all machines together
    stagger: float = 1.0  # rungs over which the workers' starts are spread

    @property
    def workers(self) -> int:
        return self.machines * self.cores


class Station:
    """One server, first come, first served."""

    def __init__(self) -> None:
        self.free_at = self.busy = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """When a job that arrives now is done."""
        self.free_at = max(now, self.free_at) + seconds
        self.busy += seconds
        return self.free_at


class Stations:
    """All that a rung passes on its way from a worker to the disk."""

    def __init__(self, cluster: Cluster, design: Design, costs: Costs) -> None:
        self.cluster, self.design, self.costs = cluster, design, costs
        self.thread, self.link, self.storage = Station(), Station(), Station()
        self.writers = [Station() for _ in range(design.writers)]

    def travel(self, now: float, saved: bool) -> float:
        """When a rung that was trained by now is before the coordinator."""
        size = self.cluster.state_bytes
        if not saved:
            return now
        if self.design.shared_storage:
            return self.storage.serve(now, size / self.cluster.storage_bytes_a_second)
        return self.link.serve(now, size * 8 / self.cluster.gigabits / 1e9)

    def written(self, now: float, saved: bool) -> float:
        """When its state is on the disk, where the coordinator has threads for that."""
        if not saved or self.design.shared_storage or not self.writers:
            return now
        writer = min(self.writers, key=lambda station: station.free_at)
        return writer.serve(now, self.costs.state_in + self.costs.checkpoint_beside)

    def record(self, now: float, saved: bool) -> float:
        """When the coordinator's thread is done with it."""
        costs = self.costs
        waits = self.thread.free_at > now  # its line then goes with an fsync that is paid already
        seconds = costs.encode if self.design.group_commit and waits else costs.journal
        if saved and not self.design.shared_storage and not self.writers:
            seconds += costs.state_in + costs.checkpoint
        return self.thread.serve(now, costs.message + seconds)

    def busy(self, makespan: float) -> dict[str, float]:
        """The share of the time that each was at work."""
        found = {"coordinator": self.thread, "network": self.link, "storage": self.storage}
        shares = {name: station.busy / makespan for name, station in found.items()}
        if self.writers:
            busy = sum(station.busy for station in self.writers)
            shares["writers"] = busy / len(self.writers) / makespan
        return shares


def simulate(cluster: Cluster, design: Design, costs: Costs, seed: int = 0) -> dict[str, Any]:
    """Train all trials; the makespan, and the share of it that everybody was at work.

    Events are (time, number, worker, kind, saved). A worker trains on while fewer than AHEAD of
    its rungs are on their way.
    """
    draw, stations = random.Random(seed), Stations(cluster, design, costs)
    left = cluster.workers * cluster.trials_a_worker
    trained = end = 0.0
    rung = [0] * cluster.workers  # of the trial in progress: how many are trained
    ahead = [0] * cluster.workers  # trained and not yet recorded
    waits = [False] * cluster.workers
    events: list[tuple[float, int, int, str, bool]] = []
    numbers = itertools.count()

    def at(when: float, worker: int, kind: str, saved: bool = False) -> None:
        heapq.heappush(events, (when, next(numbers), worker, kind, saved))

    def train(now: float, worker: int) -> None:
        nonlocal trained
        seconds = cluster.rung_seconds * max(0.1, draw.gauss(1.0, cluster.jitter))
        trained += seconds
        at(now + seconds, worker, "trained")

    def begin(now: float, worker: int) -> None:
        nonlocal left
        left -= 1
        rung[worker] = 0
        train(now, worker)

    for worker in range(cluster.workers):
        begin(draw.uniform(0, cluster.rung_seconds * cluster.stagger), worker)
    while events:
        now, _, worker, kind, saved = heapq.heappop(events)
        if kind == "trained":
            rung[worker] += 1
            ahead[worker] += 1
            last = rung[worker] == cluster.rungs
            saved = not last and (rung[worker] + worker) % design.saves_every == 0
            packed = now if last else now + costs.pack
            at(packed, worker, "packed", saved)
            waits[worker] = last or ahead[worker] >= AHEAD
            if not waits[worker]:
                train(packed, worker)
        elif kind == "packed":
            at(stations.travel(now, saved), worker, "arrived", saved)
        elif kind == "arrived":
            at(stations.written(now, saved), worker, "written", saved)
        elif kind == "written":
            at(stations.record(now, saved), worker, "recorded")
        else:
            end, ahead[worker] = now, ahead[worker] - 1
            if waits[worker] and rung[worker] < cluster.rungs:
                waits[worker] = False
                train(now, worker)
            elif rung[worker] == cluster.rungs and not ahead[worker] and left:
                begin(now, worker)
    shares = {"workers": trained / (end * cluster.workers), **stations.busy(end)}
    return {"makespan": end, "shares": shares}


# Validating -----------------------------------------------------------------------------------


def validate(directory: Path, found: dict[str, dict[str, float]], width: int) -> dict[str, Any]:
    """Train 8 trials of 10 rungs with 2 actors for real, and simulate the same.

    Steps sleep, so that two cores are enough for two actors and the coordinator; `width` decides
    how large a state is. What a rung takes is the median of what the trials report.
    """

    def loss(model: nn.Module, batch: Any) -> Any:
        time.sleep(0.02)
        return (model[0](batch[0]) - batch[1]).square().mean()

    x = torch.linspace(-1, 1, 64)[:, None]
    model = lambda: nn.Sequential(nn.Linear(1, 1), nn.Linear(width, 1000))  # noqa: E731
    problem = es.Problem(
        model=model, loss=loss, train=(x, x), valid=(x[:8], x[:8]), batch_size=8, chance=1.0
    )
    plan = Plan(steps=50, optimizer="sgd", probe_every=1000)
    work = [Work(TrialId(0.01 + i / 1000, 0), 50) for i in range(8)]
    rungs, size = [], 0
    checkpoints = Checkpoints(directory)
    with Journal(directory) as journal, RayEngine(problem, plan, workers=2) as engine:
        journal.write_header(header(50, 10, metric=False))
        list(engine.run([piece._replace(target=5) for piece in work[:2]]))  # actors are there
        start = time.perf_counter()
        for burst, state in engine.run(work):
            if state is not None:
                size = len(state)
                mark = checkpoints.save(burst.trial, burst.stop, state)
            journal.append(burst, mark if state is not None else None)
            if burst.start:
                checkpoints.drop(burst.trial, burst.start)
            rungs.append(burst.seconds)
        measured = time.perf_counter() - start
    share = size / STATE_BYTES
    costs = Costs.of(found)
    costs = replace(
        costs,
        checkpoint=max(costs.journal, costs.checkpoint * share),
        pack=costs.pack * share,
    )
    rung_seconds = statistics.median(rungs)
    jitter = statistics.stdev(rungs) / rung_seconds
    cluster = Cluster(
        1, 1e6, 2, 10, rung_seconds, min(jitter, 0.5), 4, size, stagger=0.0
    )  # a loopback link takes no time that is not in the other costs
    simulated = simulate(cluster, DESIGNS[0], costs)
    return {
        "state_bytes": size,
        "rung_seconds": rung_seconds,
        "measured": measured,
        "simulated": simulated["makespan"],
        "shares": simulated["shares"],
    }


# The run --------------------------------------------------------------------------------------


def first(shares: dict[str, float]) -> str:
    """Who holds the others up."""
    others = {name: share for name, share in shares.items() if name != "workers"}
    name = max(others, key=others.__getitem__)
    return name if others[name] > 0.9 else "workers"


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| design | Gbit/s | machines | workers busy | coordinator | network | bound by |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        shares = row["shares"]
        yield (
            f"| {row['design']} | {row['gigabits']:g} | {row['machines']} "
            f"| {shares['workers']:.0%} | {shares['coordinator']:.0%} "
            f"| {shares['network']:.0%} | {first(shares)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write all numbers here, as JSON")
    parser.add_argument("--costs", type=Path, help="take the measured part from this file")
    arguments = parser.parse_args()
    if arguments.costs:
        known = json.loads(arguments.costs.read_text())
        result = {key: known[key] for key in ("environment", "load", "measured", "validation")}
    else:
        import ray

        from etascope.environment import describe_environment

        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # a disk, not memory
            result = {
                "environment": {**describe_environment(), "ray": ray.__version__},
                "load": [os.getloadavg()],
                "measured": {**measure_ray(), **measure_disk(Path(folder))},
            }
        result["validation"] = []
        for width in (1, 10_000):
            with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
                found = validate(Path(folder), result["measured"], width)
                result["validation"].append(found)
        result["load"].append(os.getloadavg())
    costs = Costs.of(result["measured"])
    result["rows"] = [
        {
            "design": design.name,
            "gigabits": gigabits,
            "machines": machines,
            **simulate(Cluster(machines, gigabits), design, costs),
        }
        for design in DESIGNS
        for gigabits in (1, 10, 25)
        for machines in (10, 30, 100, 300, 1000)
    ]
    for name, value in result["measured"].items():
        print(f"{name:24} {value['median'] * 1e3:9.3f} ms")
    print(json.dumps(result["validation"], indent=1))
    print("\n".join(table(result["rows"])))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
