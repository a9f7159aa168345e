"""Ray Tune over the PyTorch loop as a user writes it: one CPU a trial, as many trials as cores.

Ray listens on every network interface, whatever address it is given. So this peer moves to a
network namespace of its own first, in which there is nothing but the loopback interface; where
that cannot be had it is not measured.

Ray is started and stopped within each repeat, so that it takes no time from the others. A trial
times its own steps and one report; the seconds of a repeat are the sum over trials divided by how
many run at once. That leaves out all of Ray's starting, and counts no core as idle.
"""

import fcntl
import os
import shutil
import socket
import struct
import sys
import tempfile
import time
from typing import Any

from protocol import Experiment, Prepared, Repeat, UnavailableError, batches, serve, training_data

NAMESPACE = "/proc/self/ns/net"
OUTSIDE = "BENCH_OUTSIDE_NAMESPACE"  # where the namespace of the machine is kept across the restart


def train(config: dict[str, Any]) -> None:
    """Train at one rate, as Ray calls it in a process of its own."""
    import torch
    from ray import tune
    from torch_loop import starter

    experiment, data = Experiment(**config["experiment"]), training_data()
    step, stream = starter(variant="eager")(config["lr"]), batches(*data, experiment.batch)
    first_step = None
    for _ in range(experiment.warm_up):
        step(*next(stream))
        first_step = first_step or time.time()
    began = time.perf_counter()
    for _ in range(experiment.steps):
        loss = step(*next(stream))
    tune.report({"loss": loss})
    seconds = time.perf_counter() - began
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    tune.report({"loss": loss, "seconds": seconds, "first_step": first_step, "facts": facts})


def fit(experiment: Experiment, cores: int) -> list[dict[str, Any]]:
    """Run one trial a rate and return their last reports."""
    import ray
    from ray import tune

    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(
            num_cpus=cores,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        try:
            tuner = tune.Tuner(
                tune.with_resources(train, {"cpu": 1}),
                param_space={
                    "lr": tune.grid_search(experiment.lrs),
                    "experiment": experiment._asdict(),
                },
                tune_config=tune.TuneConfig(max_concurrent_trials=cores),
                run_config=tune.RunConfig(storage_path=f"{folder}/results", verbose=0),
            )
            results = tuner.fit()
            if results.errors:
                raise results.errors[0]
            return [result.metrics for result in results]
        finally:
            ray.shutdown()


def prepare(experiment: Experiment) -> Prepared:
    """Run a study of a step, for the time of its first step."""
    import ray

    cores = len(os.sched_getaffinity(0))

    def repeat() -> Repeat:
        reports = fit(experiment, cores)
        seconds = sum(report["seconds"] for report in reports) / cores
        losses = [report["loss"] for report in reports]
        return Repeat(seconds, experiment.steps * len(experiment.lrs), losses)

    reports = fit(experiment._replace(steps=1, warm_up=1, lrs=experiment.lrs[:cores]), cores)
    facts = {"ray": ray.__version__, "trials_at_once": cores, **reports[0]["facts"]}
    return Prepared(repeat, facts, min(report["first_step"] for report in reports))


def confine() -> None:
    """Start again in a network namespace of its own, with nothing up in it but loopback."""
    if OUTSIDE not in os.environ and shutil.which("unshare"):
        again = ["unshare", "--map-root-user", "--net", sys.executable, *sys.argv]
        os.execvpe("unshare", again, {**os.environ, OUTSIDE: os.readlink(NAMESPACE)})


def prepare_confined(experiment: Experiment) -> Prepared:
    """Prepare, once it is certain that the namespace is another than that of the machine."""
    if os.environ.get(OUTSIDE, "none") in ("none", os.readlink(NAMESPACE)):
        raise UnavailableError("Ray listens on every interface, and unshare is not there")
    up = struct.pack("16sh14x", b"lo", 1)  # IFF_UP: a new namespace has its loopback down
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS
    return prepare(experiment)


if __name__ == "__main__":
    confine()
    with tempfile.TemporaryDirectory(prefix="ray-home-") as home:
        os.environ["HOME"] = home  # Ray writes a token there
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        serve(prepare_confined)
