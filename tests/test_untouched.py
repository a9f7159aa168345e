"""No public call changes anything of the caller's: each is made in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small import blobs_problem
from untouched import calls

import etascope as es

SCRIPT = Path(__file__).parent / "untouched.py"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("untouched") / "study"
    es.sweep(blobs_problem(), [0.1, 1e-3, 3.0], steps=10, optimizer="adam", out=out)
    return out


@pytest.mark.parametrize("call", calls(Path()))
def test_a_call_leaves_the_process_and_the_users_objects_as_they_were(call, study, tmp_path):
    (tmp_path / "study").symlink_to(study)
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(SCRIPT), call, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert not any(found.values()), found
