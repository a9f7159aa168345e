"""From a name to a `Problem`: the built-in ones, and references to the user's own code."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from etascope.errors import EtascopeError, UsageError
from etascope.problems.problem import Problem


def _mnist_cnn(**options: Any) -> Problem:
    from etascope.problems.mnist_cnn import mnist_cnn

    return mnist_cnn(**options)


# name -> (factory, what it is in one line, the options it takes)
PROBLEMS: dict[str, tuple[Callable[..., Problem], str, tuple[str, ...]]] = {
    "mnist-cnn": (
        _mnist_cnn,
        "a convolutional network on MNIST (3.3 M parameters, batch 50)",
        ("data", "keep_prob"),
    ),
}


def get_problem(reference: str, **options: Any) -> Problem:
    """The problem that `reference` names.

    Args:
        reference: a built-in name, `package.module:attribute` or `file.py:attribute`; the
            attribute is a Problem or a function without arguments that returns one.
        options: for a built-in problem; those that are None are left at their default.

    Raises:
        UsageError: for a name that does not exist, code that raises, or an attribute that is no
            problem.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if reference in PROBLEMS:
        factory, _, known = PROBLEMS[reference]
        _refuse(reference, [name for name in given if name not in known])
        words = [f"--{name.replace('_', '-')} {value}" for name, value in given.items()]
        return replace(factory(**given), reference=" ".join([reference, *words]))
    location, colon, attribute = reference.rpartition(":")
    if not colon or not location or not attribute:
        close = difflib.get_close_matches(reference, PROBLEMS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"built in: {', '.join(PROBLEMS)}"
        raise UsageError(
            f"no problem is called {reference!r}; {hint} "
            "Your own is package.module:attribute or file.py:attribute"
        )
    _refuse(reference, list(given))
    problem = _problem_of(_module(location), attribute, reference)
    name = attribute if problem.name == "problem" else problem.name
    return replace(problem, name=name, reference=reference)


def _refuse(reference: str, options: list[str]) -> None:
    if options:
        names = ", ".join("--" + name.replace("_", "-") for name in options)
        raise UsageError(f"{reference} does not take {names}")


def _module(location: str) -> ModuleType:
    try:
        if not location.endswith(".py"):
            # A console script does not have the working directory on its path; python -m does.
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(location)
        path = Path(location).resolve()
        if not path.is_file():
            raise UsageError(f"there is no file {location}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Its neighbours can be imported and its classes found by name, as when it is run.
        sys.path.insert(0, str(path.parent))
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    except EtascopeError:
        raise
    except ModuleNotFoundError as error:
        raise UsageError(f"cannot import {location}: {error}") from error
    except Exception as error:
        raise UsageError(f"{location} raised {type(error).__name__}: {error}") from error


def _problem_of(module: ModuleType, attribute: str, reference: str) -> Problem:
    try:
        found = getattr(module, attribute)
    except AttributeError:
        names = [name for name, value in vars(module).items() if isinstance(value, Problem)]
        close = difflib.get_close_matches(attribute, [*names, *vars(module)], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"{module.__name__} has no attribute {attribute!r}{hint}") from None
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
        try:
            found = found()
        except EtascopeError:
            raise
        except Exception as error:
            raise UsageError(f"{reference} raised {type(error).__name__}: {error}") from error
    if not isinstance(found, Problem):
        raise UsageError(
            f"{reference} is a {type(found).__name__}; it must be an etascope.Problem, "
            "or a function without arguments that returns one"
        )
    return found
