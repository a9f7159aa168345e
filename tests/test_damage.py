"""Damaged files of a study: no number that is shown is another one than was written."""

import os
import shutil

import pytest
from small import blobs_problem

import etascope as es
from etascope.encoding import seal, unseal
from etascope.journal import FOLDER, HEADER, JOURNAL
from etascope.records import TrialId
from etascope.reporting.answer import answer
from etascope.reporting.html import render
from etascope.reporting.inside import FILE, inside


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "study"
    study = es.sweep(
        blobs_problem(), {0.01: 10, 0.1: 20}, steps=20, rungs=(10,), optimizer="sgd", seeds=2,
        engine="serial", out=out,
    )  # fmt: skip
    es.look_inside(study)
    return out


@pytest.fixture
def study(made, tmp_path):
    return shutil.copytree(made, tmp_path / "study")


def rewrite(path, number, change):
    """Change the line of that number, counted from 1."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1 : number] = change(lines[number - 1])
    path.write_bytes(b"".join(lines))


def resealed(line, **changes):
    values = {**unseal(line.rstrip(b"\n")), **changes}
    return [seal(values) + b"\n"]


def test_every_flipped_bit_of_journal_and_header_is_noticed(study):
    for name in (JOURNAL, HEADER):
        path = study / name
        whole = path.read_bytes()
        intact = es.open_study(study).to_dict()
        for bit in range(0, 8 * len(whole), 101):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(es.StudyError, match=name):
                es.open_study(study)
        path.write_bytes(whole)
        assert es.open_study(study).to_dict() == intact


@pytest.mark.parametrize("bit", range(8))
def test_a_last_line_whose_newline_has_changed_is_still_there(study, bit):
    path = study / JOURNAL
    intact, whole = es.open_study(study).to_dict(), path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1 << bit]))
    assert es.open_study(study).to_dict() == intact


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda line: [], "stands in another place"),
        (lambda line: [line, line], "stands in another place"),
        (lambda line: [b"{}\n"], "checksum"),
        (lambda line: [b"\n", line], "checksum"),
        (lambda line: resealed(line, study="00"), "belongs to another study"),
        (lambda line: resealed(line, lr="wide"), "lr is 'wide', not a number"),
        (lambda line: resealed(line, lr=-1.0), "positive, finite"),
        (lambda line: resealed(line, lr=0.7), "which no line asks for"),
        (lambda line: resealed(line, seed=2**63), "which no line asks for"),
        (lambda line: resealed(line, start=10**400), "infinity"),
        (lambda line: resealed(line, start=10**300), "start is"),
        (lambda line: resealed(line, stop=2**62), "stop is"),
        (lambda line: resealed(line, stop=11), "losses for the steps"),
        (lambda line: resealed(line, kind="brust"), "kind is none"),
        (lambda line: resealed(line, kind={}), "kind is none"),
        (lambda line: resealed(line, evaluations=3), "evaluations is 3, not an array"),
        (lambda line: resealed(line, evaluations=["x" * 10**5]), r"evaluations\[0\] is"),
        (lambda line: resealed(line, failure={"step": 1}), "failure has no"),
        (lambda line: resealed(line, state=[1]), "state is"),
        (lambda line: resealed(line, note="x" * 10**5), "which this version does not know"),
        (lambda line: resealed(line, **{"x" * 10**5: 1}), "which this version does not know"),
    ],
)
def test_what_is_wrong_with_a_line_is_one_short_sentence_with_its_number(study, change, told):
    rewrite(study / JOURNAL, 2, change)
    told = rf"journal\.jsonl, line \d is damaged: .*{told}"
    with pytest.raises(es.StudyError, match=told) as said:
        es.open_study(study)
    assert len(str(said.value)) < 400 + len(str(study))


@pytest.mark.parametrize("depth", [40, 900, 10**5])
def test_what_is_nested_without_end_is_one_sentence(study, depth):
    line = (study / JOURNAL).read_bytes().splitlines()[0]
    text = line.replace(b'"request"', b"[" * depth + b"]" * depth)
    for path in (study / JOURNAL, study / HEADER, study / FILE):
        path.write_bytes(text + b"\n")
        with pytest.raises(es.StudyError) as said:
            es.open_study(study)
        assert len(str(said.value)) < 400 + len(str(study))


def test_what_is_whole_can_be_salvaged_and_says_what_is_not(study):
    intact = es.open_study(study)
    lost = intact.trials[0].trial
    rewrite(study / JOURNAL, 2, lambda line: [line.replace(b"burst", b"burts")])
    with pytest.raises(es.StudyError, match="--salvage"):
        es.open_study(study)
    rest = es.open_study(study, salvage=True)
    assert len(rest.damage) == 1
    assert "line 2" in rest.damage[0]
    assert [h.step for h in rest.trials if h.trial == lost] == [0]
    for old, new in zip(intact.trials, rest.trials, strict=True):
        if new.trial != lost:
            assert new.evaluations == old.evaluations
            assert (new.loss == old.loss).all()
    assert rest.damage[0] in answer(rest).caveats[0]
    assert rest.to_dict()["study"]["damage"] == list(rest.damage)
    assert "line 2" in render(rest)


def test_where_the_request_is_lost_the_trials_are_salvaged(study):
    intact = es.open_study(study)
    rewrite(study / JOURNAL, 1, lambda line: [b"x" + line])
    rest = es.open_study(study, salvage=True)
    assert [(h.trial, h.step) for h in rest.trials] == [(h.trial, h.step) for h in intact.trials]
    assert len(rest.damage) == 1 + len(rest.trials)


def test_the_records_of_a_trial_end_where_one_of_them_is_lost(study):
    numbers = {h.trial: n for n, h in enumerate(es.open_study(study).trials)}
    trial = TrialId(0.1, 0)
    at = next(
        number
        for number, line in enumerate((study / JOURNAL).read_bytes().splitlines(), 1)
        if b'"lr": 0.1, "seed": 0, "start": 0' in line
    )
    rewrite(study / JOURNAL, at, lambda line: [b"x" * 30 + b"\n"])
    rest = es.open_study(study, salvage=True)
    assert rest.trials[numbers[trial]].step == 0
    assert len(rest.damage) == 2
    assert f"line {at + 1}" in rest.damage[1]


def test_nothing_is_appended_to_a_damaged_journal(study):
    for number in (2, len((study / JOURNAL).read_bytes().splitlines())):
        whole = (study / JOURNAL).read_bytes()
        rewrite(study / JOURNAL, number, lambda line: [line.replace(b"burst", b"burts")])
        damaged = (study / JOURNAL).read_bytes()
        with pytest.raises(es.StudyError, match=f"line {number}"):
            es.sweep(
                blobs_problem(), [0.01, 0.1], steps=20, rungs=(10,), optimizer="sgd", seeds=2,
                engine="serial", out=study,
            )  # fmt: skip
        assert (study / JOURNAL).read_bytes() == damaged
        (study / JOURNAL).write_bytes(whole)


def test_the_header_of_another_study_fits_no_line(study, tmp_path):
    other = es.sweep(
        blobs_problem(), [0.01], steps=20, rungs=(10,), optimizer="sgd", engine="serial",
        out=tmp_path / "other",
    )  # fmt: skip
    for name in (HEADER, JOURNAL):
        whole = (study / name).read_bytes()
        shutil.copy(other.path / name, study / name)
        with pytest.raises(es.StudyError, match="belongs to another study"):
            es.open_study(study)
        (study / name).write_bytes(whole)
    es.look_inside(other)
    shutil.copy(other.path / FILE, study / FILE)
    assert "belongs to another study" in inside(es.open_study(study)).obstacles[0]


def test_every_flipped_bit_of_the_inspection_is_told_in_the_report(study):
    path = study / FILE
    whole = path.read_bytes()
    opened = es.open_study(study)
    for bit in range(0, 8 * len(whole), 1009):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found = inside(opened)
        assert (found.graph, found.step, found.updates) == (None, None, ())
        assert FILE in found.obstacles[0]
    assert "inspection.json cannot be read" in render(opened)


@pytest.mark.parametrize("name", [HEADER, JOURNAL, "steps.f64"])
@pytest.mark.parametrize("place", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_neither_waited_for_nor_read_without_end(study, name, place):
    (study / name).unlink()
    place(study / name)
    with pytest.raises(es.StudyError, match=name):
        es.open_study(study)
    if name == "steps.f64":  # the lines are whole where their numbers are not
        assert len(es.open_study(study, salvage=True).damage) > 1
    else:
        with pytest.raises(es.StudyError, match=name):
            es.open_study(study, salvage=True)
    with pytest.raises(es.StudyError):
        es.sweep(
            blobs_problem(), [0.01], steps=20, rungs=(10,), optimizer="sgd", engine="serial",
            out=study,
        )  # fmt: skip
    assert (study / FOLDER).is_dir()
