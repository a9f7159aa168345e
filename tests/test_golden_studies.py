"""Studies that version 0.1 wrote, whose lines have no checksums, are read and go on."""

import json
import shutil

import pytest
from golden_studies import STUDIES, line

import etascope as es
from etascope.inspection.look import Look
from etascope.journal import HEADER, JOURNAL
from etascope.reporting.inside import inside


@pytest.fixture
def sweep(tmp_path):
    return shutil.copytree(STUDIES / "sweep", tmp_path / "sweep")


@pytest.fixture
def find(tmp_path):
    return shutil.copytree(STUDIES / "find", tmp_path / "find")


def go_on(out, lrs=(0.03, 0.3, 1e30)):
    return es.sweep(
        line(), lrs, steps=40, seeds=2, optimizer="sgd", engine="serial", rungs=(10, 20), out=out
    )


def test_what_its_files_say_is_shown(sweep):
    study = es.open_study(sweep)
    lines = [json.loads(line) for line in (sweep / JOURNAL).read_text().splitlines()]
    said = [e["loss"] for line in lines[1:] for e in line["evaluations"]]
    shown = {e.loss for h in study.trials for e in h.evaluations}
    assert shown == set(said)
    assert [h.step for h in study.trials] == [20, 20, 40, 40, 6, 6]
    look = inside(study)
    assert isinstance(look, Look)
    assert not look.obstacles


def test_an_old_sweep_goes_on_and_its_new_lines_are_sealed(sweep, tmp_path):
    before = (sweep / JOURNAL).read_bytes()
    header = (sweep / HEADER).read_bytes()
    study = go_on(sweep)
    assert [h.step for h in study.trials] == [40, 40, 40, 40, 6, 6]
    fresh = go_on(tmp_path / "fresh")
    for old, new in zip(study.trials, fresh.trials, strict=True):
        assert old.loss == pytest.approx(new.loss)
    after = (sweep / JOURNAL).read_bytes()
    assert after.startswith(before)
    added = [json.loads(line) for line in after[len(before) :].splitlines()]
    first = before.count(b"\n") + 1
    assert [line["line"] for line in added] == list(range(first, first + len(added)))
    assert all(len(line["crc32"]) == 8 for line in added)
    assert (sweep / HEADER).read_bytes() == header
    assert go_on(sweep).to_dict() == study.to_dict()


def test_in_an_old_study_that_went_on_no_line_can_lose_its_seal(sweep):
    go_on(sweep)
    lines = (sweep / JOURNAL).read_bytes().splitlines(keepends=True)
    record = json.loads(lines[-1])
    for name in ("study", "line", "crc32"):
        del record[name]
    record["seconds"] += 1
    for at in (len(lines) - 1, len(lines) - 2):
        changed = [*lines]
        changed[at] = json.dumps(record).encode() + b"\n"
        (sweep / JOURNAL).write_bytes(b"".join(changed))
        with pytest.raises(es.StudyError, match=r"line \d+ is damaged"):
            es.open_study(sweep)


def test_an_old_find_keeps_its_answer(find):
    finding = es.open_study(find).finding
    assert (finding.lr, finding.status, finding.cost) == (0.18, "unresolved", 2.95)
    assert es.report(find, find / "report.html").exists()
    found = es.find(line(), steps=40, optimizer="sgd", budget=3, engine="serial", out=find)
    assert found == finding
    more = es.find(line(), steps=40, optimizer="sgd", budget=6, engine="serial", out=find)
    assert more.cost > 3


def test_an_old_checkpoint_of_another_step_is_not_trained_on(sweep):
    folder = sweep / "checkpoints"
    ours = folder / "lr0.03-seed0-20.safetensors"
    for damage in (b"", ours.read_bytes()[:-1], ours.read_bytes().replace(b"step", b"stop")):
        ours.write_bytes(damage)
        with pytest.raises(es.StudyError, match="is no state of a trial"):
            go_on(sweep)
