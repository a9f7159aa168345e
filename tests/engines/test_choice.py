"""Which engine trains, and what it says of itself."""

import os

import pytest
import torch
from small import blobs_problem, children, line_problem

import etascope as es
from etascope.engines.choice import choose_engine, recruit
from etascope.engines.crew import Crew
from etascope.engines.processes import ProcessesEngine
from etascope.engines.serial import SerialEngine
from etascope.environment import usable_cores
from etascope.plan import Plan
from etascope.records import TrialId
from etascope.rehearsal import rehearse
from etascope.state import pack
from etascope.trial import Trial


class Listener:
    """Takes down what it is told."""

    def __init__(self):
        self.notes, self.bursts = [], []

    def begin(self, study, waiting, why=None): ...
    def tick(self, *_): ...
    def stopping(self): ...

    def note(self, text):
        self.notes.append(text)

    def burst(self, burst):
        self.bursts.append(burst)


def test_little_work_stays_in_this_process_and_much_work_gets_workers():
    problem, plan = line_problem(), Plan(steps=5)
    with Crew(2) as crew:
        little, why = choose_engine("auto", problem, plan, workers=None, crew=crew, seconds=0.2)
        much, also = choose_engine("auto", problem, plan, workers=None, crew=crew, seconds=1000.0)
        with little, much:
            assert isinstance(little, SerialEngine)
            assert isinstance(much, ProcessesEngine)
    assert "workers would not pay" in why
    assert "2 worker processes" in also


def test_a_sweep_says_what_trains_and_what_the_checkpoints_can_take(tmp_path):
    listener = Listener()
    es.sweep(line_problem(), [0.1, 0.2], steps=5, optimizer="sgd", out=tmp_path, progress=listener)
    assert any(note.startswith("engine serial") for note in listener.notes)
    assert any(note.startswith("checkpoints take at most") for note in listener.notes)


def test_the_bound_on_checkpoints_holds(tmp_path):
    class Weigher(Listener):
        most = 0

        def burst(self, burst):
            sizes = [f.stat().st_size for f in (tmp_path / "checkpoints").iterdir()]
            self.most = max(self.most, sum(sizes))

    weigher = Weigher()
    problem = blobs_problem(
        model=lambda: torch.nn.Sequential(torch.nn.Linear(2, 4000), torch.nn.Linear(4000, 3))
    )
    es.sweep(problem, {0.001: 10, 0.01: 5, 0.02: 5}, steps=10, out=tmp_path, progress=weigher)
    (bound,) = (n.split("at most ")[1].split(" in ")[0] for n in weigher.notes if "at most" in n)
    number, unit = bound.split()
    allowed = float(number) * {"kB": 1e3, "MB": 1e6}[unit]
    assert 0 < weigher.most <= allowed * 1.1  # names and shapes come on top of the tensors


def test_a_rehearsal_tells_the_size_of_a_state_and_leaves_no_trace():
    problem, plan = blobs_problem(), Plan(steps=50)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    cost = rehearse(problem, plan, TrialId(0.01, 0))
    assert torch.equal(torch.get_rng_state(), before)
    trial = Trial(problem, plan, TrialId(0.01, 0))
    trial.advance(3)
    assert cost.state_bytes <= len(pack(trial.state())) <= 2 * cost.state_bytes + 10_000
    assert cost.step_seconds > 0


def test_a_problem_that_raises_while_it_is_timed_is_left_to_the_study_to_tell(tmp_path):
    def loss(model, batch):
        if model.training and model.weight.grad is None and (model.weight != start).any():
            raise RuntimeError("boom")
        return (model(batch[0]) - batch[1]).square().mean()

    model = torch.nn.Linear(1, 1)
    start = model.weight.detach().clone()
    problem = line_problem(model=model, loss=loss)
    assert rehearse(problem, Plan(steps=50, optimizer="sgd"), TrialId(0.1, 0)).step_seconds >= 0
    study = es.sweep(problem, [0.1], steps=5, optimizer="sgd", out=tmp_path)
    assert study.trials[0].failure.cause == "exception"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"engine": "warp"}, "no engine is called 'warp'; choose from auto, serial, processes"),
        ({"engine": 3}, "no engine is called 3"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": "two"}, "workers is 'two'"),
        ({"engine": "serial", "workers": 2}, "engine serial has no workers"),
        ({"precision": "float8"}, "precision is 'float8'; choose from float32, bfloat16"),
    ],
)
def test_engines_workers_and_precisions_that_do_not_exist_are_refused(tmp_path, options, told):
    with pytest.raises(es.UsageError, match=told):
        es.sweep(line_problem(), [0.1], steps=5, out=tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_no_more_workers_are_started_than_there_are_trials():
    with recruit("processes", line_problem(), 64, trials=2, seconds=0.0) as crew:
        assert len(crew.workers) == 2
        pids = {worker.process.pid for worker in crew.workers}
        assert pids <= children(os.getpid())
    assert not pids & children(os.getpid())


def test_workers_are_started_early_only_where_auto_will_want_them():
    with recruit("auto", line_problem(), None, trials=3, seconds=0.1) as crew:
        assert not crew.workers
    with recruit("auto", line_problem(), 1, trials=3, seconds=1e4) as crew:
        assert len(crew.workers) == 1


def test_cores_are_those_that_this_process_may_use():
    assert 1 <= usable_cores() <= 4096
