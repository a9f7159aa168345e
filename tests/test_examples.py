"""Every example runs as it stands, in an empty directory, and is short."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs_and_prints_a_rate(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    runpy.run_path(str(example), run_name="__main__")
    rates = [word for word in capsys.readouterr().out.split() if word[0].isdigit()]
    assert 1e-5 < float(rates[0]) < 10


def test_an_example_runs_from_the_shell(tmp_path):
    """As above, but in a process of its own; and the command line takes what it holds."""
    example = FOLDER / "own_model.py"
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_readme_names_the_example(example):
    assert f"examples/{example.name}" in (FOLDER.parent / "README.md").read_text()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_has_at_most_twenty_lines(example):
    lines = [line for line in example.read_text().splitlines() if line.strip()]
    assert len(lines) <= 20
