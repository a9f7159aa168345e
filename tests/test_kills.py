"""The script that kills sweeps and compares, with fewer kills than docs/performance.md tells of."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "kills.py"


def test_killed_coordinators_and_workers_change_no_record():
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--runs", "4", "--seed", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(run.stdout)
    assert [case["command"] for case in told] == ["sweep", "find"]
    killed = [sum(case["killed"][who] for case in told) for who in ("coordinator", "worker")]
    assert min(killed) > 0
    assert not any(case["different"] or case["left"] for case in told)
