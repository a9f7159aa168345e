"""What is special about worker processes: handing over, dying, and leaving nothing behind."""

import functools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from small import (
    blobs_problem,
    children,
    deadly,
    gone,
    line_problem,
    losses,
    wait_until,
)
from torch.utils.data import Dataset

import etascope as es
from etascope.engines.base import Work
from etascope.engines.handover import pack_problem, unpack_problem
from etascope.engines.jobs import ATTEMPTS
from etascope.engines.processes import ProcessesEngine
from etascope.engines.serial import SerialEngine
from etascope.plan import Plan
from etascope.records import TrialId

HERE = Path(__file__).parent.parent


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr)


# Handing over ---------------------------------------------------------------------------------


def test_tensors_and_arrays_are_mapped_and_not_copied():
    x = torch.randn(1000, 3)
    problem = line_problem(train=(x, x[:, :1]), valid=(x[::2], x[::2, 1:2]))
    parcel = pack_problem(problem, Plan(steps=3))
    assert parcel.shared_bytes == pytest.approx(x.nbytes, abs=64)  # one storage, many views
    theirs, _ = unpack_problem(parcel)
    batch = next(theirs.batches(0, 0))
    assert all(torch.equal(a, b) for a, b in zip(batch, next(problem.batches(0, 0)), strict=True))
    mapped = Path("/proc/self/maps").read_text()
    assert "/memfd:etascope" in mapped
    os.close(parcel.descriptor)


def test_what_a_worker_writes_to_its_data_stays_in_that_worker():
    x, _ = line_problem().train
    here = os.getpid()

    def loss(model, batch):
        if os.getpid() != here:
            x.add_(1.0)
        return (model(batch[0]) - batch[1]).square().mean()

    problem = line_problem(loss=loss)
    before = x.clone()
    with ProcessesEngine(problem, Plan(steps=5, optimizer=sgd), workers=1) as engine:
        assert losses(engine, [Work(TrialId(0.01, 0), 5)])
    assert torch.equal(x, before)


class Squares(Dataset):
    """A dataset of no tensors; it is built once a worker."""

    def __init__(self):
        self.numbers = [i / 50 for i in range(100)]

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, i):
        return torch.tensor([self.numbers[i]]), torch.tensor([self.numbers[i] ** 2])


def test_datasets_defined_where_no_fresh_process_could_import_them_reach_the_workers():
    problem, plan = line_problem(train=Squares(), valid=Squares()), Plan(steps=6, optimizer=sgd)
    work = [Work(TrialId(0.1, 0), 6)]
    with SerialEngine(problem, plan) as oracle, ProcessesEngine(problem, plan, 1) as engine:
        assert losses(engine, work) == losses(oracle, work)


def test_a_problem_that_cannot_leave_the_process_is_refused_or_trained_here(tmp_path):
    lock = threading.Lock()

    def loss(model, batch):
        with lock:
            return (model(batch[0]) - batch[1]).square().mean()

    problem = line_problem(loss=loss)
    with pytest.raises(es.UsageError, match=r"cannot be handed to another process .*lock"):
        es.sweep(problem, [0.1], steps=5, optimizer=sgd, engine="processes", out=tmp_path / "a")
    assert es.sweep(problem, [0.1], steps=5, optimizer=sgd, out=tmp_path / "b").complete


SCRIPT = """
import torch
import etascope as es

x = torch.linspace(-1, 1, 64)[:, None]

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(1, 1)
    def forward(self, x):
        return self.inner(x)

print("ran once")
problem = es.Problem(
    model=Line,
    loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
    train=(x, 3 * x), valid=(x, 3 * x), batch_size=16,
)
study = es.sweep(problem, [0.01, 0.1, 0.3], steps=20, optimizer="sgd",
                 engine="processes", workers=2, out="study")
print(len(study.trials), study.complete)
"""


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:2] == ["ran once", "3 True"]


def test_workers_do_not_wait_for_a_compiler_that_nothing_uses(tmp_path):
    here = os.getpid()

    def loss(model, batch):
        compiler = {"torch._dynamo.convert_frame", "torch._inductor", "sympy"} & {*sys.modules}
        if compiler and os.getpid() != here:
            raise RuntimeError(f"imported: {compiler}")
        return (model(batch[0]) - batch[1]).square().mean()

    study = es.sweep(
        line_problem(loss=loss),
        [1e-3, 1e-2],
        steps=4,
        rungs=[2],
        engine="processes",
        workers=1,
        out=tmp_path / "s",
    )
    assert [history.failure for history in study.trials] == [None, None]


# Dying ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, ATTEMPTS - 1])
def test_a_worker_that_dies_costs_the_work_since_the_last_rung_and_nothing_else(tmp_path, times):
    problem, optimizer = deadly(tmp_path, times)
    plan = Plan(steps=12, optimizer=optimizer, rungs=(12,))
    work = [Work(TrialId(lr, 0), 12) for lr in (0.1, 0.2, 0.3)]
    with ProcessesEngine(problem, plan, workers=2) as engine:
        ours = losses(engine, work)
    assert len(list(tmp_path.iterdir())) == times
    with SerialEngine(problem, plan) as oracle:
        assert ours == losses(oracle, work)


def test_a_trial_that_kills_its_worker_three_times_has_failed(tmp_path):
    problem, optimizer = deadly(tmp_path, 100)
    plan = Plan(steps=12, optimizer=optimizer, rungs=(4, 12))
    work = [Work(TrialId(lr, 0), 12) for lr in (0.1, 0.2, 0.3)]
    bursts = {}
    with ProcessesEngine(problem, plan, workers=2) as engine:
        for burst, _ in engine.run(work):
            bursts.setdefault(burst.trial.lr, []).append(burst)
    # Restored at step 4 the count begins anew, so step 7 of the optimizer is step 11 of the trial.
    assert len(list(tmp_path.iterdir())) == ATTEMPTS
    failure = bursts[0.2][-1].failure
    assert failure.cause == "worker"
    assert "SIGKILL" in failure.message
    assert [bursts[lr][-1].stop for lr in (0.1, 0.3)] == [12, 12]


def test_workers_that_cannot_start_are_one_clear_error(monkeypatch):
    monkeypatch.setattr("etascope.engines.crew.COMMAND", "raise SystemExit(7)  # {path}")
    engine = ProcessesEngine(line_problem(), Plan(steps=3), workers=1)
    with engine, pytest.raises(es.EtascopeError, match=r"do not start \(exit status 7\)"):
        losses(engine, [Work(TrialId(0.1, 0), 3)])


# Leaving nothing behind -----------------------------------------------------------------------

LONG = """
import sys
sys.path.insert(0, {here!r})
import torch, etascope as es
from small import slow_blobs
es.sweep(slow_blobs(), [0.001, 0.1, 0.2, 0.3], steps=20000, out={out!r},
         engine="processes", workers=2, optimizer="sgd", rungs=[100])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_the_process_that_started_it(tmp_path, how):
    code = LONG.format(here=str(HERE), out=str(tmp_path / "study"))
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    journal = tmp_path / "study" / "journal.jsonl"
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 2, seconds=200)
    workers = children(parent.pid)
    assert len(workers) == 2
    parent.send_signal(how)
    parent.wait(timeout=30)
    wait_until(lambda: all(gone(pid) for pid in workers))


FORKING = """
import os, time
from etascope.training import Silent

class Forking(Silent):
    forked = False
    def burst(self, burst):
        if not self.forked and os.fork() == 0:
            time.sleep(100)  # as the worker of a pool: it holds every pipe of its parent open
            os._exit(0)
        self.forked = True
"""


def test_no_worker_outlives_its_parent_where_a_fork_of_that_lives_on(tmp_path):
    code = LONG.format(here=str(HERE), out=str(tmp_path / "study"))
    code = code.replace("es.sweep(", FORKING + "es.sweep(progress=Forking(), problem=").replace(
        "(), [", "(), lrs=["
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    find = functools.partial(children_with, parent.pid)
    worker, fork = b"etascope.engines.worker", b"Forking"
    wait_until(lambda: len(find(worker)) == 2 and len(find(fork)) == 1, seconds=200)
    workers, forks = find(worker), find(fork)
    parent.kill()
    parent.wait()
    wait_until(lambda: all(gone(pid) for pid in workers), seconds=10)
    for pid in forks:
        os.kill(pid, signal.SIGKILL)


def children_with(parent, word):
    """The children of a process that have a word in their command."""
    command_of = {pid: Path(f"/proc/{pid}/cmdline") for pid in children(parent)}
    return {pid for pid, path in command_of.items() if path.exists() and word in path.read_bytes()}


def test_workers_give_the_study_that_serial_gives(tmp_path):
    options = {"steps": 20, "seeds": 2, "optimizer": sgd}
    one = es.sweep(
        blobs_problem(), [0.1, 1e-3, 3.0], engine="serial", out=tmp_path / "a", **options
    )
    two = es.sweep(
        blobs_problem(),
        [0.1, 1e-3, 3.0],
        engine="processes",
        workers=2,
        out=tmp_path / "b",
        **options,
    )
    for ours, theirs in zip(one.trials, two.trials, strict=True):
        assert ours.loss.tolist() == theirs.loss.tolist()
        assert ours.evaluations == theirs.evaluations
    assert one.verdicts == two.verdicts
