"""One writer a study, also where the file system has no locks."""

import errno
import fcntl
import os
import subprocess
import sys
import time
import warnings

import pytest
from small import line_problem

import etascope as es
from etascope.journal import JOURNAL, Journal
from etascope.lock import OWNER

CODE = """
import errno, fcntl, os, sys, time
from pathlib import Path
from etascope.errors import StudyError
from etascope.journal import Journal

def none(*_):
    raise OSError(errno.{code}, "no locks here")

fcntl.flock = none
try:
    with Journal(Path(sys.argv[1])):
        print("writes", flush=True)
        time.sleep(float(sys.argv[2]))
except StudyError as error:
    print(error, flush=True)
"""


@pytest.fixture
def no_locks(monkeypatch):
    def none(*_):
        raise OSError(errno.EOPNOTSUPP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", none)


def writer(out, seconds, code="ENOLCK"):
    command = [sys.executable, "-c", CODE.format(code=code), str(out), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_without_locks_the_first_writer_is_named_and_keeps_the_study(tmp_path, code, no_locks):
    first = writer(tmp_path, 60, code)
    assert first.stdout.readline() == "writes\n"
    with pytest.raises(es.StudyError, match=rf"offers no locks, and process {first.pid} of"):
        Journal(tmp_path)
    first.kill()
    first.wait()
    with Journal(tmp_path):  # it is dead, and its mark blocks nobody
        assert (tmp_path / OWNER).exists()
    assert not (tmp_path / OWNER).exists()
    first.stdout.close()


def test_a_writer_on_another_machine_is_never_robbed(tmp_path, no_locks):
    with Journal(tmp_path):
        record = (tmp_path / OWNER).read_text()
    lines = record.split("\n")
    lines[1] = "another-machine"
    (tmp_path / OWNER).write_text("\n".join(lines))
    past = time.time() - 10**6
    os.utime(tmp_path / OWNER, (past, past))
    with pytest.raises(es.StudyError, match=r"of another-machine is writing .* delete that file"):
        Journal(tmp_path)


def test_a_sweep_works_without_locks_and_without_a_warning(tmp_path, no_locks):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = es.sweep(
            line_problem(), [0.1], steps=4, optimizer="sgd", engine="serial", out=tmp_path
        )
    assert study.complete
    assert not (tmp_path / OWNER).exists()


def sweep(out, **options):
    return es.sweep(
        line_problem(), [0.1, 0.3], steps=20, optimizer="sgd", engine="serial", out=out, **options
    )


class Meddler:
    """Does something to the study when its first burst was recorded."""

    def __init__(self, act):
        self.act = act

    def begin(self, *_): ...
    def tick(self, *_): ...
    def note(self, text): ...
    def stopping(self): ...

    def burst(self, burst):
        self.act, act = lambda: None, self.act
        act()


@pytest.mark.parametrize("name", [JOURNAL, "steps.f64"])
@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda path: (path.rename(f"{path}.old"), path.touch()), "was replaced"),
        (lambda path: path.unlink(), "was replaced"),
        (lambda path: os.truncate(path, 0), "was cut"),
        (lambda path: os.truncate(path, path.stat().st_size + 8), "written to by somebody else"),
    ],
    ids=["replaced", "deleted", "cut", "grown"],
)
def test_a_file_that_changes_under_a_running_study_ends_it(tmp_path, name, act, told):
    with pytest.raises(es.StudyError, match=told):
        sweep(tmp_path, progress=Meddler(lambda: act(tmp_path / name)))


def test_a_journal_that_is_replaced_at_the_last_burst_is_noticed(tmp_path):
    def act():
        (tmp_path / JOURNAL).unlink()
        (tmp_path / JOURNAL).touch()

    with pytest.raises(es.StudyError, match="was replaced"):
        es.sweep(
            line_problem(), [0.1], steps=1, optimizer="sgd", engine="serial", out=tmp_path,
            progress=Meddler(act),
        )  # fmt: skip
