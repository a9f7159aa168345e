"""What callers pass: taken where it can only mean one thing, refused in one sentence elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small import line_problem

import etascope as es
from etascope.arguments import check_out


def sweep(out):
    return es.sweep(line_problem(), [0.1], steps=5, optimizer="sgd", out=out)


@pytest.mark.parametrize(
    ("out", "told"),
    [
        (3, "out is 3; it must be the path of a directory"),
        (b"bytes", "out is b'bytes'"),
        (True, "out is True"),
        ("", "out is empty"),
        ("a\0b", "null"),
        ("x" * 300, "name too long"),
        ("file/below", "Not a directory"),
        ("file", "is a file"),
        ("\ud800", "surrogates"),
    ],
)
def test_an_out_that_cannot_be_a_directory_is_one_short_sentence(tmp_path, monkeypatch, out, told):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    with pytest.raises(es.UsageError, match=told) as caught:
        sweep(out)
    assert len(str(caught.value)) < 160
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc to be refused by")
def test_a_directory_that_cannot_be_made_is_an_error_of_the_study():
    with pytest.raises(es.StudyError, match="cannot create the study in /proc/x"):
        sweep("/proc/x")


def test_an_out_may_be_new_or_there_and_any_kind_of_path(tmp_path):
    class Named:
        def __fspath__(self):
            return str(tmp_path / "named")

    assert check_out(tmp_path) == tmp_path
    assert check_out(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert check_out(Named()) == tmp_path / "named"
    assert os.listdir(tmp_path) == []
