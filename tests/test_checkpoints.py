"""The checkpoints of a study: whose they are, and that nothing else in their folder is touched."""

import os
import shutil

import pytest
from small import blobs_problem, line_problem

import etascope as es
from etascope.checkpoints import Checkpoints, file_name, is_checkpoint
from etascope.encoding import STEPS
from etascope.journal import FOLDER, HEADER, JOURNAL
from etascope.records import TrialId

FOREIGN = (
    "epoch10.pt",
    "best.safetensors",
    "README",
    "lr0.1-seed0-5.safetensors.bak",
    "lr0.10-seed0-5.safetensors",
    "lr1e-01-seed0-5.safetensors",
    "lr0.1-seed00-5.safetensors",
    "lrbest-seed0-5.safetensors",
    "lrinf-seed0-5.safetensors",
    "LR0.1-seed0-5.safetensors",
    ".hidden",
)


def paused(out, **options):
    """A sweep of two rates that stands at half of its horizon."""
    return es.sweep(
        line_problem(), {0.1: 5, 0.3: 5}, steps=10, optimizer="sgd", engine="serial", out=out
    )


def go_on(out):
    return es.sweep(line_problem(), [0.1, 0.3], steps=10, optimizer="sgd", engine="serial", out=out)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return paused(tmp_path_factory.mktemp("half") / "study").path


@pytest.fixture
def study(half, tmp_path):
    return shutil.copytree(half, tmp_path / "study")


@pytest.mark.parametrize("lr", [0.1, 1e-5, 1e30, 5e-324, 1.7976931348623157e308, 3.0])
def test_its_own_names_are_known(lr):
    name = file_name(TrialId(lr, 2**64 - 1), 12345)
    assert is_checkpoint(name)
    assert is_checkpoint(f".{name}.0123456789abcdef")


@pytest.mark.parametrize("name", FOREIGN)
def test_other_names_are_not(name):
    assert not is_checkpoint(name)


def test_a_users_own_project_is_refused_and_nothing_in_it_touched(tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name in (*FOREIGN, "lr0.1-seed0-5.safetensors"):
        (folder / name).write_text(name)
    before, beside = contents(folder), sorted(tmp_path.iterdir())
    with pytest.raises(es.UsageError, match=r"holds checkpoints but no study\.json"):
        paused(tmp_path)
    assert contents(folder) == before
    assert sorted(tmp_path.iterdir()) == beside


@pytest.mark.parametrize("name", [JOURNAL, STEPS])
def test_a_foreign_journal_is_neither_adopted_nor_cut(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"kind": "request", "trials": []}\nmy own notes')
    before = contents(tmp_path)
    with pytest.raises(es.UsageError, match=r"no study\.json"):
        paused(tmp_path)
    assert contents(tmp_path) == before


def test_a_study_that_lost_its_header_is_adopted_by_nobody(study):
    (study / HEADER).unlink()
    before = contents(study)
    for problem in (line_problem(), blobs_problem()):
        with pytest.raises(es.UsageError, match=r"no study\.json"):
            es.sweep(problem, [0.1], steps=10, optimizer="sgd", engine="serial", out=study)
    assert contents(study) == before


@pytest.mark.parametrize("missing", [JOURNAL, STEPS])
def test_a_study_that_lost_its_records_does_not_begin_again(study, missing):
    (study / missing).unlink()
    with pytest.raises(es.StudyError, match=missing):
        go_on(study)
    (study / missing).touch()
    with pytest.raises(es.StudyError, match=r"is empty|ends before"):
        go_on(study)
    with pytest.raises(es.StudyError, match=r"is empty|ends before"):
        es.open_study(study)
    assert len(list((study / FOLDER).iterdir())) == 2


def test_what_a_user_keeps_beside_the_checkpoints_of_a_study_stays(study):
    for name in FOREIGN:
        (study / FOLDER / name).write_text(name)
    left = f".{file_name(TrialId(0.1, 0), 3)}.00ff"  # of a writer that was killed
    (study / FOLDER / left).touch()
    (study / FOLDER / file_name(TrialId(0.7, 0), 3)).mkdir()
    go_on(study)
    kept = {path.name for path in (study / FOLDER).iterdir()}
    assert kept == {*FOREIGN, file_name(TrialId(0.7, 0), 3)}


def test_a_link_in_the_place_of_the_folder_is_refused(study, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(study / FOLDER, elsewhere)
    (study / FOLDER).symlink_to(elsewhere)
    before = contents(elsewhere)
    with pytest.raises(es.StudyError, match="is a symbolic link"):
        go_on(study)
    assert contents(elsewhere) == before


def test_a_link_in_the_place_of_a_checkpoint_is_neither_read_nor_deleted(study, tmp_path):
    path = study / FOLDER / file_name(TrialId(0.1, 0), 5)
    target = shutil.move(path, tmp_path / "target")
    path.symlink_to(target)
    with pytest.raises(es.StudyError, match="is a symbolic link"):
        go_on(study)
    other = study / FOLDER / file_name(TrialId(0.9, 0), 5)
    other.symlink_to(target)
    Checkpoints(study).keep_only({})
    assert path.is_symlink()
    assert other.is_symlink()


def test_every_flipped_bit_of_a_checkpoint_is_noticed(study):
    path = study / FOLDER / file_name(TrialId(0.1, 0), 5)
    whole = path.read_bytes()
    mark = es.open_study(study).mark(TrialId(0.1, 0), 5)
    checkpoints = Checkpoints(study)
    assert checkpoints.load(TrialId(0.1, 0), 5, mark) == whole
    for bit in range(0, 8 * len(whole), 37):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(es.StudyError, match="not the one that was saved there"):
            checkpoints.load(TrialId(0.1, 0), 5, mark)


def test_a_checkpoint_of_another_trial_or_step_is_not_trained_on(study):
    ours, other = (study / FOLDER / file_name(TrialId(lr, 0), 5) for lr in (0.1, 0.3))
    shutil.copy(other, ours)
    with pytest.raises(es.StudyError, match=r"lr 0\.1, seed 0 at step 5 .* not the one"):
        go_on(study)


@pytest.mark.parametrize("place", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_no_checkpoint(study, place):
    path = study / FOLDER / file_name(TrialId(0.1, 0), 5)
    path.unlink()
    place(path)
    with pytest.raises(es.StudyError, match="no regular file"):
        go_on(study)
