"""A study that goes on under other versions, or on another machine, says so."""

import json

import pytest
from small import line_problem

import etascope as es
from etascope import environment, training
from etascope.journal import JOURNAL
from etascope.reporting.answer import answer
from etascope.training import Silent


class Listener(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def sweep(out, steps_of, listener=None):
    return es.sweep(
        line_problem(), steps_of, steps=20, optimizer="sgd", engine="serial", out=out,
        progress=listener,
    )  # fmt: skip


@pytest.fixture
def elsewhere(monkeypatch):
    def pretend(**changes):
        here = environment.describe_environment()
        monkeypatch.setattr(training, "describe_environment", lambda: {**here, **changes})

    return pretend


def test_other_versions_are_told_on_resuming_and_whenever_the_study_is_shown(tmp_path, elsewhere):
    sweep(tmp_path, {0.1: 10})
    elsewhere(torch="9.9.0", cpu="another processor")
    listener = Listener()
    study = sweep(tmp_path, [0.1], listener)
    assert any("torch" in note and "9.9.0" in note for note in listener.notes)
    assert [e["torch"] for e in study.environments][1:] == ["9.9.0"]
    assert any("9.9.0" in caveat for caveat in answer(study).caveats)
    shown = json.loads(json.dumps(study.to_dict()))["environment"]
    assert [e["cpu"] for e in shown["later"]] == ["another processor"]


def test_it_is_told_once_for_each_change(tmp_path, elsewhere):
    sweep(tmp_path, {0.1: 5})
    elsewhere(torch="9.9.0")
    for steps in (10, 15):
        listener = Listener()
        study = sweep(tmp_path, {0.1: steps}, listener)
    assert len(study.environments) == 2
    assert not any("9.9.0" in note for note in listener.notes)


@pytest.mark.parametrize("changes", [{}, {"cores": 64, "platform": "Linux-9", "python": "3.99"}])
def test_what_changes_no_number_is_not_told(tmp_path, elsewhere, changes):
    sweep(tmp_path, {0.1: 10})
    elsewhere(**changes)
    listener = Listener()
    study = sweep(tmp_path, [0.1], listener)
    assert study.notes == ()
    assert study.to_dict()["environment"]["later"] == []
    assert not any("something else" in note for note in listener.notes)


def test_a_study_that_is_complete_is_left_as_it_is(tmp_path, elsewhere):
    sweep(tmp_path, [0.1])
    before = (tmp_path / JOURNAL).read_bytes()
    elsewhere(torch="9.9.0")
    sweep(tmp_path, [0.1])
    assert (tmp_path / JOURNAL).read_bytes() == before
