"""From a name to a `Problem`: the built-in ones, and references to the user's own code."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from etascope.errors import EtascopeError, UsageError, text_of
from etascope.problems.problem import Problem


class BuiltIn(NamedTuple):
    """A ready-made problem: `name-of-it` is the function `name_of_it` of the module of that name.

    Attributes:
        summary: what it is, in one line.
        options: the keyword arguments that the command line passes on.
    """

    summary: str
    options: tuple[str, ...] = ()


PROBLEMS: dict[str, BuiltIn] = {
    "mnist-cnn": BuiltIn(
        "a convolutional network on MNIST (3.3 M parameters, batch 50)", ("data", "keep_prob")
    ),
    "mnist-mlp": BuiltIn("a multilayer perceptron on MNIST (0.1 M, batch 50)", ("data",)),
    "mnist-batchnorm": BuiltIn(
        "a convolutional network with batch norm on MNIST (19 k, batch 50)", ("data",)
    ),
    "mnist-lstm": BuiltIn("an LSTM over the rows of MNIST (25 k, batch 50)", ("data",)),
    "diabetes": BuiltIn("a tabular regression, scikit-learn's data (5 k, batch 32)"),
    "char-transformer": BuiltIn("the next character of Python's help texts (0.1 M, batch 16)"),
    "quadratic": BuiltIn("an ill-conditioned noisy quadratic with known answers (20, batch 8)"),
}


def get_problem(reference: str, **options: Any) -> Problem:
    """The problem that `reference` names: see `get_subject`, but a module is no problem."""
    found = get_subject(reference, **options)
    if not isinstance(found, Problem):
        raise UsageError(f"{reference} gives a module and its inputs; it must give a Problem")
    return found


def get_subject(reference: str, **options: Any) -> Problem | tuple[nn.Module, Any]:
    """The problem that `reference` names, or the module with example inputs.

    Args:
        reference: a built-in name, `package.module:attribute` or `file.py:attribute`; the
            attribute is a Problem, or a function without arguments that returns one or a pair
            `(module, inputs)`.
        options: for a built-in problem; those that are None are left at their default.

    Raises:
        UsageError: for a name that does not exist, code that raises, or an attribute that is no
            problem.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if reference in PROBLEMS:
        known = PROBLEMS[reference].options
        _refuse(reference, [name for name in given if name not in known])
        name = reference.replace("-", "_")
        factory = getattr(importlib.import_module(f"etascope.problems.{name}"), name)
        words = [word for k, v in given.items() for word in (f"--{k.replace('_', '-')}", str(v))]
        ready: Problem = factory(**given)
        return replace(ready, reference=shlex.join([reference, *words]))
    location, _, attribute = reference.rpartition(":")
    if not location or not attribute:
        raise UsageError(f"no problem is called {reference!r}; {_hint(reference)}")
    _refuse(reference, list(given))
    problem = _subject_of(_module(location), attribute, reference)
    if not isinstance(problem, Problem):
        return problem
    name = attribute if problem.name == "problem" else problem.name
    return replace(problem, name=name, reference=shlex.quote(reference))


def _hint(reference: str) -> str:
    """What may have been meant by a name that names nothing."""
    if reference.rstrip(":").endswith(".py"):
        return f"name the Problem in the file too, such as {reference.rstrip(':')}:problem"
    close = difflib.get_close_matches(reference, PROBLEMS, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return (
        f"built in: {', '.join(PROBLEMS)}; your own is package.module:attribute "
        "or file.py:attribute"
    )


def _refuse(reference: str, options: list[str]) -> None:
    if options:
        names = ", ".join("--" + name.replace("_", "-") for name in options)
        raise UsageError(f"{reference} does not take {names}")


def _module(location: str) -> ModuleType:
    with _named(location):
        if location.endswith(".py"):
            return _module_of_file(location)
        # A console script does not have the working directory on its path; python -m does.
        if "" not in sys.path:
            _look_in(Path.cwd())
        try:
            return importlib.import_module(location)
        except ModuleNotFoundError as error:
            raise UsageError(f"cannot import {location}: {error}") from error


def _module_of_file(location: str) -> ModuleType:
    """The module that a file holds, under a name of its own.

    Under the file's own name it would hide another module of that name, from the standard library
    or from another folder. Its neighbours can be imported, as when it is run.
    """
    path = Path(location).resolve()
    if not path.is_file():
        raise UsageError(f"there is no file {location}")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"_etascope_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _look_in(path.parent)
    sys.modules[name] = module  # dataclasses and pickle look for a class by its module's name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@contextmanager
def _named(part: str) -> Iterator[None]:
    """Say which part of the user's code raised."""
    try:
        yield
    except EtascopeError:
        raise
    except SystemExit as error:
        raise UsageError(
            f"{part} raised SystemExit ({error.code}); what ends the process belongs under "
            'if __name__ == "__main__"'
        ) from error
    except Exception as error:
        raise UsageError(f"{part} raised {text_of(error, 300)}") from error


def _subject_of(
    module: ModuleType, attribute: str, reference: str
) -> Problem | tuple[nn.Module, Any]:
    try:
        found = getattr(module, attribute)
    except AttributeError:
        names = [name for name, value in vars(module).items() if isinstance(value, Problem)]
        close = difflib.get_close_matches(attribute, [*names, *vars(module)], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        location = reference.rpartition(":")[0]
        raise UsageError(f"{location} has no attribute {attribute!r}{hint}") from None
    if callable(found) and not isinstance(found, (Problem, type)):
        needed = [
            name
            for name, p in inspect.signature(found).parameters.items()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if needed:
            raise UsageError(
                f"{reference} needs arguments ({', '.join(needed)}); it must need none"
            )
        with _named(reference):
            found = found()
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], nn.Module):
        return found[0], found[1]
    if not isinstance(found, Problem):
        raise UsageError(
            f"{reference} is a {type(found).__name__}; it must be an etascope.Problem, "
            "or a function without arguments that returns one"
        )
    return found
