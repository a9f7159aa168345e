"""What another process sees of a problem is what this one has, bit for bit, or it is refused.

`ETASCOPE_NESTED_PROBLEMS=200` tries as many nested problems at random; 25 are tried without it.
"""

import functools
import hashlib
import os
import subprocess
import sys
import threading
from multiprocessing.connection import Pipe
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from nested import kinds, nested_values, picture
from small import gather, line_problem, losses, work_of
from torch.utils.data import DataLoader

import etascope as es
from etascope.engines.handover import pack_problem, pickle_problem, send_problem
from etascope.engines.processes import ProcessesEngine
from etascope.engines.ray import RayEngine
from etascope.engines.ray_memory import join
from etascope.engines.serial import SerialEngine
from etascope.engines.witness import witness_of
from etascope.plan import Plan

TESTS = Path(__file__).parent.parent
MANY = int(os.environ.get("ETASCOPE_NESTED_PROBLEMS", "25"))
PLAN = Plan(steps=3, optimizer="sgd")


def squared_error(model, batch, data):
    return (model(batch[0]) - batch[1]).square().mean()


def holding(data):
    """A problem whose loss holds something."""
    return line_problem(loss=functools.partial(squared_error, data=data))


@pytest.fixture(scope="module")
def receiver():
    """The other end of a connection to a process that pictures the problems it is sent."""
    ours, theirs = Pipe()
    path = os.pathsep.join([str(TESTS), *(entry or "." for entry in sys.path)])
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "receiver.py"), str(theirs.fileno())],
        pass_fds=(theirs.fileno(),),
        env={**os.environ, "PYTHONPATH": path},
    )
    theirs.close()
    yield ours
    ours.close()
    process.wait()


def seen_by(receiver, problem, where):
    """The picture that another process draws of what a problem holds."""
    receiver.send(where)
    if where == "here":
        parcel = pack_problem(problem, PLAN)
        send_problem(receiver, parcel)
        os.close(parcel.descriptor)
    else:
        whole, places, _ = join(pickle_problem(problem, PLAN, elsewhere=True))
        receiver.send((places, witness_of(problem)))
        receiver.send_bytes(whole.data)
    return receiver.recv()


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_values_of_every_kind_arrive_bit_for_bit(receiver, tmp_path, where):
    for name, value in kinds(tmp_path).items():
        assert seen_by(receiver, holding(value), where) == picture(value), name
    everything = kinds(tmp_path)
    assert seen_by(receiver, holding(everything), where) == picture(everything)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(
    max_examples=MANY,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(value=nested_values())
def test_nested_values_at_random_arrive_bit_for_bit(receiver, value):
    for where in ("here", "elsewhere"):
        assert seen_by(receiver, holding(value), where) == picture(value)


def in_numbers(model, batch, data):
    """A loss that says what its data is: a term of it is a number for the picture."""
    digest = hashlib.sha256(picture(data).encode()).digest()
    return (model(batch[0]) - batch[1]).square().mean() + int.from_bytes(digest[:2], "big")


@pytest.mark.parametrize("name", ["processes", "ray"])
def test_a_loss_sees_the_same_data_on_every_engine(request, tmp_path, name):
    data = kinds(tmp_path)
    if name == "ray":
        request.getfixturevalue("ray_connection")
    make = {"processes": ProcessesEngine, "ray": RayEngine}[name]
    problem = line_problem(loss=functools.partial(in_numbers, data=data))
    with SerialEngine(problem, PLAN) as oracle, make(problem, PLAN, workers=1) as engine:
        assert losses(engine, work_of([0.1], 3)) == losses(oracle, work_of([0.1], 3))


class Rows(torch.utils.data.Dataset):
    """Inputs in a tensor and targets in an array."""

    def __init__(self):
        self.x = torch.randn(80, generator=torch.Generator().manual_seed(0))
        self.y = 3 * self.x.numpy().copy()

    def __len__(self):
        return 80

    def __getitem__(self, i):
        return self.x[i][None], self.y[i]


@pytest.mark.parametrize("name", ["processes", "ray"])
def test_a_tensor_and_an_array_of_one_dataset_keep_their_own_memory(request, name):
    if name == "ray":
        request.getfixturevalue("ray_connection")
    problem = line_problem(
        train=Rows(), valid=Rows(), loss=lambda m, b: (m(b[0])[:, 0] - b[1]).square().mean()
    )
    make = {"processes": ProcessesEngine, "ray": RayEngine}[name]
    work = work_of([0.1], 3)
    with SerialEngine(problem, PLAN) as oracle, make(problem, PLAN, workers=1) as engine:
        assert losses(engine, work) == losses(oracle, work)


def test_memory_that_overlaps_is_handed_over_once():
    base = np.arange(100_000, dtype=np.float64)
    windows = [base[n : n + 50_000] for n in range(0, 50_000, 500)]
    parcel = pack_problem(holding([base, torch.from_numpy(base), windows]), PLAN)
    os.close(parcel.descriptor)
    assert base.nbytes <= parcel.shared_bytes < base.nbytes + 10_000


def test_a_map_of_a_file_is_not_read_to_be_handed_over(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 32)  # of holes, more than the machine may have memory for
    parcel = pack_problem(holding(np.memmap(path, np.uint8, "r")), PLAN)
    os.close(parcel.descriptor)
    assert parcel.shared_bytes < 10_000


# What cannot be handed over ---------------------------------------------------------------------


class Files(Rows):
    """A dataset that keeps a file open."""

    def __init__(self, handle):
        super().__init__()
        self.handle = handle


def loss_with(lock):
    def loss(model, batch):
        with lock:
            return (model(batch[0]) - batch[1]).square().mean()

    return loss


def deep(thing):
    rows = Rows()
    rows.extra = {"parts": [0, 1, {"inner": (thing,)}]}
    return rows


def refused():
    weights = torch.ones(3, requires_grad=True)
    file, lock = sys.__stdin__, threading.Lock()
    rows = Files(file)
    return {
        "a file": (line_problem(train=rows, valid=Rows()), "train.handle", "open it"),
        "in a loader": (
            line_problem(train=DataLoader(rows, batch_size=8), valid=Rows()),
            "train.dataset.handle",
            "open it",
        ),
        "in a closure": (line_problem(loss=loss_with(lock)), "loss.lock", "open files"),
        "far down": (
            line_problem(valid=deep(lock)),
            "valid.extra['parts'][2]['inner'][0]",
            "open files",
        ),
        "a graph": (holding({"mean": weights * 2}), "loss.data['mean']", "detach it"),
        "a generator": (holding([(n for n in range(3))]), "loss.data[0]", "open files"),
    }


@pytest.mark.parametrize("name", refused())
def test_what_cannot_be_handed_over_is_refused_by_its_path_and_cause(name):
    problem, path, remedy = refused()[name]
    with pytest.raises(es.UsageError) as raised:
        pickle_problem(problem, PLAN)
    assert str(raised.value).startswith(f"{path} cannot be handed to another process (")
    assert remedy in str(raised.value)
    assert str(raised.value).endswith("or use engine serial")


# What is another problem in a worker --------------------------------------------------------------


def elsewhere_different(part):
    """A problem that is another one in every process but this."""
    here = os.getpid()

    class Moody(Rows):
        def __getitem__(self, i):
            shift = part == "batch" and os.getpid() != here
            return self.x[i][None] + shift, self.y[i]

    def loss(model, batch):
        if part == "raising" and os.getpid() != here:
            raise RuntimeError("not here")
        shift = part == "loss" and os.getpid() != here
        return (model(batch[0])[:, 0] - batch[1]).square().mean() + shift

    return line_problem(train=Moody(), valid=Moody(), loss=loss)


@pytest.mark.parametrize("name", ["processes", "ray"])
@pytest.mark.parametrize(
    ("part", "words"),
    [("batch", "another first batch"), ("loss", "the first loss"), ("raising", "RuntimeError")],
)
def test_no_worker_trains_on_another_problem(request, name, part, words):
    if name == "ray":
        request.getfixturevalue("ray_connection")
    make = {"processes": ProcessesEngine, "ray": RayEngine}[name]
    with make(elsewhere_different(part), PLAN, workers=1) as engine:  # noqa: SIM117
        with pytest.raises(es.EtascopeError, match=words) as raised:
            gather(engine, work_of([0.1], 3))
    assert "in a worker" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_generator_of_the_datasets_own_is_handed_over_as_it_stood():
    class Noisy(Rows):
        def __init__(self):
            super().__init__()
            self.random = np.random.default_rng(0)

        def __getitem__(self, i):
            return self.x[i][None], self.y[i] + np.float32(self.random.normal())

    problem = line_problem(
        train=Noisy(), valid=Rows(), loss=lambda m, b: (m(b[0])[:, 0] - b[1]).square().mean()
    )
    with ProcessesEngine(problem, PLAN, workers=1) as engine:
        assert losses(engine, work_of([0.1], 3))


def test_what_a_script_sets_for_its_process_holds_in_its_workers():
    torch.set_default_dtype(torch.float64)
    try:
        x = torch.linspace(-1, 1, 64)[:, None]
        problem = line_problem(train=(x, 3 * x), valid=(x, 3 * x))
        with SerialEngine(problem, PLAN) as oracle, ProcessesEngine(problem, PLAN, 1) as engine:
            assert losses(engine, work_of([0.1], 3)) == losses(oracle, work_of([0.1], 3))
    finally:
        torch.set_default_dtype(torch.float32)
