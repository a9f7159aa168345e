"""The reading side: what is on the disk is what is shown."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from small import blobs_problem

import etascope as es
from etascope.encoding import STEPS, seal, unseal
from etascope.journal import HEADER, JOURNAL


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("read")
    return es.sweep(blobs_problem(), [0.01, 0.5, 1e30], steps=40, seeds=2, optimizer=sgd, out=out)


def test_a_study_is_the_same_whoever_opens_it(study):
    assert es.open_study(study.path).to_dict() == study.to_dict()
    assert es.open_study(str(study.path)).best == study.best == 0.5
    assert study.lrs == (0.01, 0.5, 1e30)
    assert study.seeds == (0, 1)
    assert study.complete


def test_the_frame_has_a_row_a_trial(study):
    frame = study.to_frame()
    assert len(frame) == 6
    best = frame[frame.lr == 0.5]
    assert set(best.verdict) == {"best"}
    assert (best.steps == 40).all()
    failed = frame[frame.lr == 1e30]
    assert set(failed.status) == {"failed"}
    assert failed.test_metric.isna().all()
    assert math.isfinite(frame.peak_loss.max())


def test_missing_pandas_names_the_install_command(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(es.UsageError, match=r"pip install 'etascope\[frame\]'"):
        study.to_frame()


def test_losses_of_a_failed_trial_are_strict_json(study):
    failed = [t for t in study.to_dict()["trials"] if t["lr"] == 1e30]
    assert all(t["status"] == "failed" for t in failed)
    assert all(t["series"]["loss"][-1] in ("nan", "inf", "-inf") for t in failed)
    json.dumps(study.to_dict(), allow_nan=False)


def test_the_losses_on_the_disk_are_those_of_a_plain_training_loop(tmp_path):
    """The oracle is a loop as a user writes it, with the batches and masks of the trial."""
    from etascope.randomness import stream

    problem = blobs_problem()
    study = es.sweep(problem, [0.05], steps=12, optimizer=sgd, out=tmp_path)
    torch.manual_seed(stream(0, "init"))
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    points, labels = problem.train
    losses = []
    for step in range(12):
        epoch, position = divmod(step, 10)
        order = torch.randperm(
            200, generator=torch.Generator().manual_seed(stream(0, "order", epoch))
        )
        batch = order[20 * position : 20 * position + 20]
        torch.manual_seed(stream(0, "step", step))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(points[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(study.trials[0].loss, losses, rtol=1e-5)


def test_what_is_no_study_is_one_clear_error(tmp_path):
    for use in (es.open_study, es.plot, lambda it: es.report(it, tmp_path / "a.html")):
        with pytest.raises(es.UsageError, match="not by a int"):
            use(3)
    with pytest.raises(es.StudyError, match="there is no study"):
        es.open_study(tmp_path)
    with pytest.raises(es.StudyError, match="there is no study"):
        es.open_study(tmp_path / "nowhere")
    (tmp_path / HEADER).write_text("{")
    with pytest.raises(es.StudyError, match="cannot be read"):
        es.open_study(tmp_path)
    (tmp_path / HEADER).write_text('{"version": 99}')
    with pytest.raises(es.StudyError, match="no study of format 2"):
        es.open_study(tmp_path)
    (tmp_path / HEADER).write_text('{"version": 2}')
    with pytest.raises(es.StudyError, match="damaged"):
        es.open_study(tmp_path)


def test_records_that_make_no_sense_are_one_clear_error(study, tmp_path):
    (tmp_path / HEADER).write_bytes((study.path / HEADER).read_bytes())
    for line in ('{"kind": "burst"}', '{"kind": "request", "trials": 3}', "{}"):
        (tmp_path / JOURNAL).write_text(line + "\n")
        with pytest.raises(es.StudyError, match="damaged"):
            es.open_study(tmp_path)


def test_opening_a_study_imports_nothing_that_it_names(study, tmp_path):
    header = unseal((study.path / HEADER).read_bytes())
    header["reference"] = "antigravity_of_a_study:problem"
    (tmp_path / HEADER).write_bytes(seal(header))
    for name in (JOURNAL, STEPS):
        (tmp_path / name).touch()
    (tmp_path / "antigravity_of_a_study.py").write_text("raise SystemExit")
    assert es.open_study(tmp_path).reference == header["reference"]
    assert "antigravity_of_a_study" not in sys.modules
