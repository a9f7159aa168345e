"""The script that kills sweeps and compares, with fewer kills than docs/performance.md tells of."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "kills.py"


def test_killed_coordinators_and_workers_change_no_record():
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--runs", "3", "--seed", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(run.stdout)
    assert told["killed"]["coordinator"] + told["killed"]["worker"] >= 2
    assert told["killed"]["coordinator"] > 0 < told["killed"]["worker"]
