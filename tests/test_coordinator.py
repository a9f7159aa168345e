import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from small import blobs_problem, line_problem

import etascope as es
from etascope.journal import JOURNAL

HERE = Path(__file__).parent


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)


def settled(study):
    """`to_dict` without what a clock says."""
    document = json.loads(json.dumps(study.to_dict()))
    document["study"].pop("seconds")
    document.pop("environment")
    for trial in document["trials"]:
        trial.pop("seconds")
    return document


def test_the_order_of_the_rates_changes_nothing(tmp_path):
    one = es.sweep(blobs_problem(), [0.1, 1e-3, 3.0], steps=20, optimizer=sgd, out=tmp_path / "a")
    two = es.sweep(blobs_problem(), [3.0, 0.1, 1e-3], steps=20, optimizer=sgd, out=tmp_path / "b")
    assert settled(one) == settled(two)


def test_a_study_can_be_extended_by_rates_seeds_and_later_targets(tmp_path):
    whole = es.sweep(
        blobs_problem(), [0.1, 0.01], steps=20, seeds=2, optimizer=sgd, out=tmp_path / "whole"
    )
    part = tmp_path / "part"
    first = es.sweep(blobs_problem(), {0.1: 6}, steps=20, optimizer=sgd, out=part)
    assert [h.step for h in first.trials] == [6]
    es.sweep(blobs_problem(), [0.1], steps=20, optimizer=sgd, out=part)
    grown = es.sweep(blobs_problem(), [0.1, 0.01], steps=20, seeds=2, optimizer=sgd, out=part)
    ours = {h.trial: (h.loss.tolist(), h.evaluation("test")) for h in grown.trials}
    assert ours == {h.trial: (h.loss.tolist(), h.evaluation("test")) for h in whole.trials}


def test_a_finished_study_is_not_trained_again(tmp_path):
    es.sweep(blobs_problem(), [0.1], steps=10, optimizer=sgd, out=tmp_path)
    size = (tmp_path / JOURNAL).stat().st_size
    es.sweep(blobs_problem(), [0.1], steps=10, optimizer=sgd, out=tmp_path)
    assert (tmp_path / JOURNAL).stat().st_size == size


def test_only_trials_that_may_go_on_keep_a_checkpoint(tmp_path):
    es.sweep(blobs_problem(), {0.1: 10, 0.2: 4, 1e20: 4}, steps=10, optimizer=sgd, out=tmp_path)
    kept = {path.name.split("-seed")[0] for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"lr0.2"}


@pytest.mark.parametrize(
    ("problem", "options", "told"),
    [
        (blobs_problem, {"steps": 12}, "steps 10 instead of 12"),
        (blobs_problem, {"clip": 1.0}, "clip None instead of 1.0"),
        (line_problem, {}, "another problem"),
        (lambda: blobs_problem(batch_size=10), {}, "another problem"),
    ],
)
def test_the_directory_of_another_study_is_refused_and_kept(tmp_path, problem, options, told):
    es.sweep(blobs_problem(), [0.1], steps=10, optimizer=sgd, out=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(es.UsageError, match=told):
        es.sweep(problem(), [0.1], **{"steps": 10, "optimizer": sgd, **options}, out=tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def with_momentum(momentum):
    return lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


def halved_every(steps):
    return lambda optimizer, _: torch.optim.lr_scheduler.StepLR(optimizer, steps, 0.5)


@pytest.mark.parametrize(
    ("begun", "now", "told"),
    [
        ({"optimizer": with_momentum(0.5)}, {"optimizer": with_momentum(0.9)}, "optimizer factory"),
        ({"schedule": halved_every(2)}, {"schedule": halved_every(3)}, "schedule factory"),
    ],
)
def test_factories_of_one_name_that_make_different_things_are_told_apart(
    tmp_path, begun, now, told
):
    es.sweep(line_problem(), {0.1: 4}, steps=8, out=tmp_path, **begun)
    es.sweep(line_problem(), {0.1: 6}, steps=8, out=tmp_path, **begun)
    with pytest.raises(es.UsageError, match=told):
        es.sweep(line_problem(), [0.1], steps=8, out=tmp_path, **now)


def test_a_study_is_not_gone_on_with_under_another_metric_or_chance(tmp_path):
    es.sweep(blobs_problem(), {0.1: 4}, steps=8, out=tmp_path)
    with pytest.raises(es.UsageError, match="higher_is_better True instead of False"):
        es.sweep(blobs_problem(higher_is_better=False), [0.1], steps=8, out=tmp_path)
    with pytest.raises(es.UsageError, match=r"another problem|chance"):
        es.sweep(blobs_problem(chance=3.0), [0.1], steps=8, out=tmp_path)


def test_a_file_as_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(es.UsageError, match="is a file"):
        es.sweep(blobs_problem(), [0.1], steps=10, optimizer=sgd, out=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 10, "optimizer": lambda m, lr: m}, "returned a Sequential"),
        ({"steps": 10, "optimizer": lambda m, lr: 1 / 0}, "ZeroDivisionError"),
        ({"steps": 10, "optimizer": lambda m, lr: torch.optim.LBFGS(m.parameters())}, "closure"),
        ({"steps": 10, "schedule": lambda o, n: 1 / 0}, "schedule raised"),
        ({"steps": 10, "epochs": 1}, "either steps or epochs"),
        ({}, "either steps or epochs"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_at_the_door(tmp_path, options, told):
    out = tmp_path / "study"
    with pytest.raises(es.UsageError, match=told):
        es.sweep(blobs_problem(), [0.1], **{"optimizer": sgd, **options}, out=out)
    assert not out.exists()


def test_epochs_are_passes_over_the_training_data(tmp_path):
    study = es.sweep(blobs_problem(), [0.1], epochs=2, optimizer=sgd, out=tmp_path)
    assert study.horizon == 20
    halved = es.sweep(
        blobs_problem(), [0.1], epochs=2, accumulate=2, optimizer=sgd, out=tmp_path / "b"
    )
    assert halved.horizon == 10


def test_a_sweep_works_off_the_main_thread(tmp_path):
    studies = []

    def run():
        studies.append(es.sweep(line_problem(), [0.1], steps=5, optimizer=sgd, out=tmp_path))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert studies[0].complete


def moving():
    """A line whose loss raises once the weights have moved far, until it is mended."""
    model = torch.nn.Linear(1, 1)
    start = model.weight.detach().clone()

    def loss(model, batch):
        if not moving.mended and (model.weight - start).abs().max() > 0.3:
            raise RuntimeError("not so far")
        return (model(batch[0]) - batch[1]).square().mean()

    return line_problem(model=model, loss=loss)


def test_a_trial_that_raised_is_tried_again_from_its_last_rung_by_the_next_run(tmp_path):
    moving.mended = False
    options = {"steps": 40, "optimizer": sgd, "rungs": range(2, 40, 2), "out": tmp_path / "s"}
    problem = moving()
    first = es.sweep(problem, [0.02], **options).trials[0]
    assert first.failure.cause == "exception"
    assert first.resume_step > 0
    moving.mended = True
    mended = es.sweep(problem, [0.02], **options).trials[0]
    assert mended.failure is None
    assert mended.step == 40
    whole = es.sweep(problem, [0.02], **{**options, "out": tmp_path / "whole"}).trials[0]
    assert mended.loss.tolist() == whole.loss.tolist()
    assert mended.evaluations == whole.evaluations


# Killed and started again ---------------------------------------------------------------------

SCRIPT = """
import sys
sys.path.insert(0, {here!r})
import torch, etascope as es
from small import slow_blobs
es.sweep(slow_blobs(), [0.001, 0.1, 1e20], steps=60, seeds=2, out={out!r},
         optimizer=lambda m, lr: torch.optim.Adam(m.parameters(), lr=lr))
"""


def start(out):
    code = SCRIPT.format(here=str(HERE), out=str(out))
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)


def finish(out):
    _, told = (process := start(out)).communicate(timeout=120)
    assert process.returncode == 0, told.decode()


def journal_lines(out):
    path = out / JOURNAL
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(condition, process, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "study"
    finish(out)
    return settled(es.open_study(out))


def test_a_sweep_killed_at_random_moments_ends_with_the_same_records(tmp_path, uninterrupted):
    chance, out = random.Random(0), tmp_path / "study"
    kills = 0
    for _ in range(40):
        process, seen = start(out), journal_lines(out)
        wait_for(lambda seen=seen: journal_lines(out) > seen, process)
        time.sleep(chance.uniform(0, 0.08))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stderr.close()
        if kills == 5:
            break
    finish(out)
    assert kills >= 3
    assert settled(es.open_study(out)) == uninterrupted


def test_ctrl_c_saves_the_step_in_progress_and_the_rest_follows(tmp_path, uninterrupted):
    out = tmp_path / "study"
    process = start(out)
    wait_for(lambda: journal_lines(out) >= 3, process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in told
    assert not es.open_study(out).complete
    finish(out)
    assert settled(es.open_study(out)) == uninterrupted


def test_ctrl_c_twice_loses_nothing_that_was_written(tmp_path, uninterrupted):
    out = tmp_path / "study"
    process = start(out)
    wait_for(lambda: journal_lines(out) >= 3, process)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    process.communicate(timeout=30)
    assert process.returncode != 0
    finish(out)
    assert settled(es.open_study(out)) == uninterrupted


def test_a_disk_that_fills_up_is_one_clear_error_and_the_study_goes_on(tmp_path, uninterrupted):
    """The limit on the size of a file stands for the disk."""
    out = tmp_path / "study"
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))\n"
    )
    code = limit + SCRIPT.format(here=str(HERE), out=str(out))
    run = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=False)
    assert run.returncode != 0
    assert b"StudyError" in run.stderr
    assert es.open_study(out).trials
    finish(out)
    assert settled(es.open_study(out)) == uninterrupted


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path):
    es.sweep(blobs_problem(), {0.1: 5}, steps=10, optimizer=sgd, out=tmp_path)
    (tensors,) = (tmp_path / "checkpoints").glob("*.safetensors")
    os.truncate(tensors, 40)
    with pytest.raises(es.StudyError, match=r"checkpoint of lr 0\.1"):
        es.sweep(blobs_problem(), [0.1], steps=10, optimizer=sgd, out=tmp_path)
    assert es.open_study(tmp_path).trials[0].step == 5


def test_nothing_in_a_study_can_run_code(tmp_path):
    """Every file is strict JSON, safetensors, bare numbers or empty: no pickle, no import."""
    es.sweep(blobs_problem(), {0.1: 5}, steps=10, optimizer=sgd, out=tmp_path)
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds == {".json", ".jsonl", ".f64", ".safetensors", ".lock"}
    for path in tmp_path.rglob("*.json*"):
        for line in (
            path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        ):
            json.loads(line, parse_constant=pytest.fail)
    assert (tmp_path / "study.lock").read_bytes() == b""
