"""What is special about a Ray cluster: nodes and actors that die, and leaving nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small import (
    blobs_problem,
    deadly,
    descendants,
    gone,
    line_problem,
    losses,
    slow_blobs,
    wait_until,
)
from torch import nn

import etascope as es
from etascope.engines.base import Work
from etascope.engines.crew import ENVIRONMENT
from etascope.engines.jobs import ATTEMPTS
from etascope.engines.ray import RayEngine, _Worker
from etascope.engines.ray_actor import VERSIONS, Actor
from etascope.engines.ray_memory import join, split
from etascope.engines.serial import SerialEngine
from etascope.plan import Plan
from etascope.records import TrialId

HERE = Path(__file__).parent.parent


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr)


def work_of(rates, target):
    return [Work(TrialId(lr, 0), target) for lr in rates]


def wide(seconds=0.0):
    """A problem whose states are too large for a message: they stay in their node's store."""

    def loss(model, batch):
        time.sleep(seconds)
        return (model(batch[0]) - batch[1]).square().mean()

    model = lambda: nn.Sequential(nn.Linear(1, 30_000), nn.ReLU(), nn.Linear(30_000, 1))  # noqa: E731
    return line_problem(model=model, loss=loss)


# What is asked for wrongly --------------------------------------------------------------------


def test_without_ray_the_error_names_the_install_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(es.UsageError, match=r"pip install 'etascope\[ray\]'"):
        es.sweep(line_problem(), [0.1], steps=5, engine="ray", out=tmp_path / "a")


def test_an_address_belongs_to_the_ray_engine(tmp_path):
    with pytest.raises(es.UsageError, match="use engine ray"):
        es.sweep(line_problem(), [0.1], steps=5, address="auto", out=tmp_path / "a")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001"])
def test_an_address_where_no_cluster_answers_is_one_clear_error(tmp_path, address):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'etascope[ray]'")
    with pytest.raises(es.UsageError, match=r"give host:port|give the host:port"):
        es.sweep(line_problem(), [0.1], steps=5, engine="ray", address=address, out=tmp_path / "a")


def test_a_problem_that_cannot_leave_the_process_is_refused_before_ray_starts(tmp_path):
    lock = threading.Lock()

    def loss(model, batch):
        with lock:
            return (model(batch[0]) - batch[1]).square().mean()

    with pytest.raises(es.UsageError, match="cannot be handed to another process"):
        RayEngine(line_problem(loss=loss), Plan(steps=3))


# Handing over ---------------------------------------------------------------------------------


def test_actors_share_the_memory_of_their_node_and_have_the_allocators_settings(
    ray_connection, tmp_path
):
    x, here = torch.linspace(-1, 1, 64)[:, None], os.getpid()

    def loss(model, batch):
        for line in Path("/proc/self/maps").read_text().splitlines():
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            if first <= x.data_ptr() < last and os.getpid() != here:
                settings = [str(os.environ.get(name)) for name in ENVIRONMENT]
                (tmp_path / str(os.getpid())).write_text("\n".join([line, *settings]))
        return (model(batch[0]) - batch[1]).square().mean()

    problem = line_problem(train=(x, 3 * x), valid=(x, 3 * x), loss=loss)
    with RayEngine(problem, Plan(steps=2, optimizer=sgd), workers=1) as engine:
        losses(engine, work_of([0.1], 2))
    (told,) = (path.read_text().splitlines() for path in tmp_path.iterdir())
    assert "plasma" in told[0]
    assert told[0].split()[1].startswith("rw-p")
    assert told[1:] == list(ENVIRONMENT.values())


def test_parts_come_out_as_they_were_put_together():
    parts = [memoryview(b"a" * n) for n in (5, 0, 5000)]
    assert [bytes(part) for part in split(*join(parts)[:2])] == [bytes(part) for part in parts]


WRITER = """
import torch
from etascope.engines.ray_memory import join, protect, split
whole, places, _ = join([memoryview(bytes(80))])
protect(whole)
(part,) = split(whole, places)
x = torch.frombuffer(part, dtype=torch.float32)
print(x.sum().item(), flush=True)
x.add_(1)
"""


def test_writing_to_data_that_others_share_ends_the_writer():
    run = subprocess.run(
        [sys.executable, "-c", WRITER], capture_output=True, text=True, check=False
    )
    assert run.stdout == "0.0\n"
    assert run.returncode == -signal.SIGSEGV


def test_a_worker_with_another_version_is_refused():
    actor = Actor(np.zeros(1, np.uint8), [], None, {**VERSIONS, "torch": "0.1"})
    with pytest.raises(es.EtascopeError, match=r"has torch \S+ and this process 0\.1; install the"):
        actor.pid()


# The study ------------------------------------------------------------------------------------


STUDY = """
import sys
sys.path.insert(0, {here!r})
import etascope as es
from small import blobs_problem
es.sweep(blobs_problem(), [0.1, 1e-3, 3.0], steps=20, optimizer="sgd", out={out!r},
         engine="ray", workers=2, address={address!r})
"""


def test_a_cluster_that_runs_already_gives_the_study_that_serial_gives(
    ray_connection, as_the_cluster, tmp_path
):
    import ray

    address = ray.get_runtime_context().gcs_address
    code = STUDY.format(here=str(HERE), out=str(tmp_path / "b"), address=address)
    subprocess.run([sys.executable, "-c", code], check=True)
    assert ray.is_initialized()
    with pytest.raises(es.UsageError, match=r"connected to .*; leave it out"):
        RayEngine(blobs_problem(), Plan(steps=3), address="127.0.0.1:1")
    one = es.sweep(
        blobs_problem(),
        [0.1, 1e-3, 3.0],
        steps=20,
        optimizer="sgd",
        engine="serial",
        out=tmp_path / "a",
    )
    two = es.open_study(tmp_path / "b")
    for ours, theirs in zip(one.trials, two.trials, strict=True):
        assert ours.loss.tolist() == theirs.loss.tolist()
        assert ours.evaluations == theirs.evaluations
    assert one.verdicts == two.verdicts


def test_a_cluster_finds_what_one_process_finds(ray_connection, tmp_path):
    options = {"steps": 40, "optimizer": "sgd"}
    one = es.find(line_problem(), engine="serial", out=tmp_path / "a", **options)
    two = es.find(line_problem(), engine="ray", workers=2, out=tmp_path / "b", **options)
    assert two.lr == pytest.approx(one.lr, rel=0.05)
    assert two.edge.lr == pytest.approx(one.edge.lr, rel=0.05)


# Dying ----------------------------------------------------------------------------------------


def test_a_trial_that_kills_its_actor_three_times_has_failed_and_no_other_has(
    ray_connection, tmp_path
):
    problem, optimizer = deadly(tmp_path, 100)
    plan = Plan(steps=12, optimizer=optimizer, rungs=(4, 12))
    bursts = {}
    with RayEngine(problem, plan, workers=2) as engine:
        for burst, _ in engine.run(work_of((0.1, 0.2, 0.3), 12)):
            bursts.setdefault(burst.trial.lr, []).append(burst)
    # The first death may cost the first rung, which is on its way then; so it may be one more.
    assert len(list(tmp_path.iterdir())) in (ATTEMPTS, ATTEMPTS + 1)
    failure = bursts[0.2][-1].failure
    assert failure.cause == "worker"
    assert failure.step == 4
    with SerialEngine(problem, plan) as oracle:
        whole = losses(oracle, work_of((0.1, 0.3), 12))
    for trial, loss in whole.items():
        assert [one for burst in bursts[trial.lr] for one in burst.loss] == loss


def test_a_node_that_dies_costs_the_work_since_the_last_rung_and_nothing_else(
    ray_connection, as_the_cluster
):
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    cluster.head_node = ray._private.worker._global_node
    node = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    problem, plan = wide(0.005), Plan(steps=60, optimizer=sgd, rungs=(20, 40))
    work, ours = work_of((1e-6, 2e-6, 3e-6, 4e-6), 60), {}
    with RayEngine(problem, plan, workers=3) as engine:
        for burst, _ in engine.run(work):
            ours.setdefault(burst.trial, []).extend(burst.loss)
            if len(ours) == 3 and node is not None:  # three trials on three CPUs of two nodes
                cluster.remove_node(node, allow_graceful=False)
                node = None
    with SerialEngine(problem, plan) as oracle:
        assert ours == losses(oracle, work)


def test_a_state_lost_with_its_node_is_trained_again_and_given_once(ray_connection, monkeypatch):
    import ray

    lost, begin = [], _Worker.begin

    def begin_without_state(worker, job):
        """As when every node that has the state is gone: the actor cannot get it."""
        if job.state is not None and not lost:
            lost.append(job.work.step)
            job.state = gone_state.remote()
        begin(worker, job)

    @ray.remote(max_retries=0)
    def gone_state():
        raise ray.exceptions.ObjectLostError("00" * 28, None, "")

    monkeypatch.setattr(_Worker, "begin", begin_without_state)
    problem, plan = wide(0.005), Plan(steps=60, optimizer=sgd, rungs=(20, 40))
    work, ours = work_of((1e-6,), 60), []
    with RayEngine(problem, plan, workers=1) as engine:
        for burst, _ in engine.run(work):
            ours.append((burst.start, burst.stop, burst.loss))
            if not lost and burst.stop == 20:
                (worker,) = engine._busy
                ray.kill(worker.actor)
    assert lost[0] >= 20
    with SerialEngine(problem, plan) as oracle:
        assert ours == [(b.start, b.stop, b.loss) for b, _ in oracle.run(work)]


# Leaving nothing behind -----------------------------------------------------------------------


def listening(pids):
    """The addresses that processes listen on, in hexadecimal."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                sockets.add(os.readlink(link))
            except FileNotFoundError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].partition(":")[0])
    return found


LOOPBACK = {
    "0100007F",  # 127.0.0.1
    "0000000000000000FFFF00000100007F",  # the same, as IPv6 maps it
    "00000000000000000000000001000000",  # ::1
}

LONG = """
import sys
sys.path.insert(0, {here!r})
import torch, etascope as es
from small import slow_blobs
es.sweep(slow_blobs(), [0.001, 0.1, 0.2, 0.3], steps=20000, out={out!r},
         engine="ray", workers=2, optimizer="sgd", rungs=[100])
"""


@pytest.fixture
def temporary():
    """A directory whose name is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_cluster_of_our_own_is_loopback_only_and_leaves_nothing_behind(tmp_path, temporary, how):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'etascope[ray]'")
    home, shared = tmp_path / "home", set(Path("/dev/shm").iterdir())
    home.mkdir()
    code = LONG.format(here=str(HERE), out=str(tmp_path / "study"))
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": str(home), "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    journal = tmp_path / "study" / "journal.jsonl"
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 3, seconds=200)
    started = descendants(parent.pid)
    assert list(temporary.iterdir())  # where the cluster's files are
    names = [Path(f"/proc/{pid}/cmdline").read_text() for pid in started]
    assert sum(name.startswith("ray::Actor") for name in names) == 2
    assert listening({parent.pid, *started}) <= LOOPBACK
    if how == signal.SIGINT:
        os.killpg(parent.pid, how)  # Ctrl-C reaches all that the terminal has started
    else:
        parent.send_signal(how)
    _, told = parent.communicate(timeout=60)
    wait_until(lambda: all(map(gone, started)), seconds=10)
    # torch makes a folder of its own, for all programs, where its SGD takes a step.
    ours = lambda: [p for p in temporary.iterdir() if not p.name.startswith("torchinductor_")]  # noqa: E731
    wait_until(lambda: ours() == [], seconds=10)
    assert list(home.iterdir()) == []
    assert set(Path("/dev/shm").iterdir()) <= shared
    if how == signal.SIGINT:
        assert told.rstrip().endswith("KeyboardInterrupt")
        saved = es.open_study(tmp_path / "study")
        stopped = [trial for trial in saved.trials if trial.status == "paused"]
        assert len(stopped) == 2
        assert len(list((tmp_path / "study" / "checkpoints").iterdir())) == 2
        problem, plan = slow_blobs(), Plan(steps=20000, optimizer="sgd", rungs=(100,))
        with SerialEngine(problem, plan) as oracle:
            for trial in stopped:
                (whole,) = losses(oracle, [Work(trial.trial, 150)]).values()
                assert trial.loss[:150].tolist() == whole[: len(trial.loss)]
