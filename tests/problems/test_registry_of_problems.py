import importlib
import shlex
import sys

import pytest

import etascope as es

GOOD = """
import torch, etascope as es
x = torch.linspace(-1, 1, 32)[:, None]
problem = es.Problem(model=lambda: torch.nn.Linear(1, 1), train=(x, x), valid=(x, x),
                     loss=lambda m, b: (m(b[0]) - b[1]).square().mean())
def make():
    return problem
def needy(a): return problem
def broken(): raise ValueError("no")
def leaving(): raise SystemExit(3)
number = 3
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "mine_for_registry.py"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("attribute", ["problem", "make"])
def test_a_file_and_an_attribute_name_a_problem(file, attribute):
    problem = es.get_problem(f"{file}:{attribute}")
    assert isinstance(problem, es.Problem)
    assert problem.name == attribute
    assert problem.reference == f"{file}:{attribute}"


def test_a_module_in_the_working_directory_names_a_problem(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert es.get_problem("mine_for_registry:problem").name == "problem"


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("mnist-cn", "did you mean mnist-cnn"),
        ("", "no problem is called"),
        ("nothing.py:problem", "there is no file nothing.py"),
        ("no_such_module:problem", "cannot import no_such_module"),
        ("{file}:probelm", "did you mean problem"),
        ("{file}:needy", r"needs arguments \(a\)"),
        ("{file}:broken", "raised ValueError: no"),
        ("{file}:number", "is a int"),
        ("{file}", "no problem is called .*mine_for_registry.py:problem$"),
        ("{file}:", "mine_for_registry.py:problem$"),
        (
            "resnet",
            "'resnet'; built in: mnist-cnn, .*; your own is package.module:attribute or file",
        ),
        ("mnist-cn", "'mnist-cn'; did you mean mnist-cnn\\?$"),
        ("{file}:leaving", r"mine_for_registry.py:leaving raised SystemExit \(3\); what ends"),
        ("{file}:nothing", "mine_for_registry.py has no attribute 'nothing'"),
    ],
)
def test_what_is_no_problem_is_one_sentence(file, reference, told):
    with pytest.raises(es.UsageError, match=told):
        es.get_problem(reference.format(file=file))


def test_a_file_that_raises_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "raises_for_registry.py"
    path.write_text("1 / 0")
    with pytest.raises(es.UsageError, match="ZeroDivisionError"):
        es.get_problem(f"{path}:problem")


def test_a_file_that_ends_the_process_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "leaves_for_registry.py"
    path.write_text("import sys\nsys.exit('bye')")
    with pytest.raises(es.UsageError, match=r"leaves_for_registry.py raised SystemExit \(bye\)"):
        es.get_problem(f"{path}:problem")
    assert not [name for name in sys.modules if "leaves_for_registry" in name]


def test_a_file_neither_hides_nor_is_hidden_by_a_module_of_its_name(tmp_path, monkeypatch):
    """Such as one of the standard library, or a file of the same name in another folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    problems = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "colorsys.py"
        path.write_text(GOOD.replace("x, x), valid", f"x, x), name='{name}', valid"))
        problems.append(es.get_problem(f"{path}:problem"))
        monkeypatch.setattr(sys, "path", [p for p in sys.path if str(tmp_path) not in p])
    assert [problem.name for problem in problems] == ["one", "two"]
    assert importlib.import_module("colorsys").rgb_to_hsv(0, 0, 0) == (0, 0, 0)


def test_a_file_may_hold_dataclasses_and_import_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour_for_registry.py").write_text("size = 2")
    path = tmp_path / "asks_for_registry.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import KW_ONLY, dataclass\n"
        "import pickle, neighbour_for_registry\n"
        "@dataclass\nclass Settings:\n    _: KW_ONLY\n    size: int = 2\n"
        "assert pickle.loads(pickle.dumps(Settings())) == Settings()\n" + GOOD
    )
    assert es.get_problem(f"{path}:problem").name == "problem"


def test_a_reference_is_written_as_a_shell_takes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "my problem.py"
    path.write_text(GOOD)
    problem = es.get_problem(f"{path}:problem")
    assert shlex.split(problem.reference) == [f"{path}:problem"]
    assert es.get_problem("mnist-cnn").reference == "mnist-cnn"
    assert es.get_problem("mnist-cnn", keep_prob=0.9).reference == "mnist-cnn --keep-prob 0.9"


def test_options_go_to_built_in_problems_only(file):
    with pytest.raises(es.UsageError, match="does not take --keep-prob"):
        es.get_problem(f"{file}:problem", keep_prob=0.5)
