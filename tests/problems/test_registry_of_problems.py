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
        ("{file}", "no problem is called"),
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


def test_options_go_to_built_in_problems_only(file):
    with pytest.raises(es.UsageError, match="does not take --keep-prob"):
        es.get_problem(f"{file}:problem", keep_prob=0.5)
