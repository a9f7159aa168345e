"""The part of a problem that cannot leave its process, by the path that leads to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from etascope.engines.pickling import Unmovable
from etascope.errors import RAISED, UsageError, text_of
from etascope.plan import Plan
from etascope.problems.problem import Problem

REMEDY = "open files, locks and connections inside the functions that use them"
SPLITS = ("train", "valid", "test")
DEEPEST = 30  # steps of a path, after which a reader has lost it


def refusal(
    problem: Problem, plan: Plan, pickled: Callable[[object], object], error: BaseException
) -> UsageError:
    """The error that names what cannot be handed over.

    Args:
        problem, plan: what was to be.
        pickled: pickles a value, or raises.
        error: what it raised for the whole.
    """
    path, cause = "the problem", error
    children = _parts(problem, plan)
    for _ in range(DEEPEST):
        found = _first_failing(list(children), pickled)
        if found is None:
            break
        path, value, cause = found
        children = _children(path, value)
    why = str(cause) if isinstance(cause, Unmovable) else text_of(cause)
    remedy = cause.remedy if isinstance(cause, Unmovable) else REMEDY
    return UsageError(
        f"{path} cannot be handed to another process ({why}); {remedy}, or use engine serial"
    )


Child = tuple[str, object]


def _first_failing(
    children: Sequence[Child], pickled: Callable[[object], object]
) -> tuple[str, object, BaseException] | None:
    """The first child that cannot be pickled, found by halving."""
    error = _error([value for _, value in children], pickled)
    if error is None:
        return None
    while len(children) > 1:
        half = children[: len(children) // 2]
        found = _error([value for _, value in half], pickled)
        children = children[len(half) :] if found is None else half
        error = found or error
    path, value = children[0]
    error = _error(value, pickled)
    return None if error is None else (path, value, error)


def _error(value: object, pickled: Callable[[object], object]) -> BaseException | None:
    try:
        pickled(value)
    except RAISED as error:
        return error
    return None


def _parts(problem: Problem, plan: Plan) -> Iterator[Child]:
    """The parts of a problem under the names that its owner gave them."""
    for name, value in vars(problem).items():
        if name not in (*SPLITS, "sources"):
            yield name, value
    for name in SPLITS:
        data = getattr(problem, name)
        if isinstance(data, DataLoader):
            yield f"{name}.dataset", data.dataset
            yield f"{name}.collate_fn", data.collate_fn
        else:
            yield name, data
    yield from problem.sources.items()
    yield from vars(plan).items()


def _children(path: str, value: object) -> Iterator[Child]:
    """What a pickle of a value holds, each with its path."""
    if isinstance(value, Mapping):
        for key in value:
            yield f"{path}[{key!r:.40}]", value[key]
    elif isinstance(value, (list, tuple, deque)):
        names = getattr(value, "_fields", None)
        for number, item in enumerate(value):
            yield (f"{path}.{names[number]}" if names else f"{path}[{number}]"), item
    elif isinstance(value, Set):
        yield from ((f"an item of {path}", item) for item in value)
    elif isinstance(value, partial):
        yield path, value.func
        yield from ((f"{path}.args[{n}]", item) for n, item in enumerate(value.args))
        yield from ((f"{path}.{name}", item) for name, item in value.keywords.items())
    elif isinstance(value, MethodType):
        yield path, value.__self__
    elif isinstance(value, CellType):
        with suppress(ValueError):  # it may be empty
            yield path, value.cell_contents
    elif isinstance(value, FunctionType):
        yield from _variables(path, value)
    elif isinstance(value, nn.Module):
        yield from ((f"{path}.{name}", child) for name, child in value.named_children())
    if not isinstance(value, (Mapping, type)):
        yield from ((f"{path}.{name}", item) for name, item in _attributes(value))


def _variables(path: str, function: FunctionType) -> Iterator[Child]:
    """What a function takes from around it."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    yield from ((f"{path}.{name}", cell) for name, cell in cells)
    yield from ((f"a default of {path}", item) for item in function.__defaults__ or ())
    yield from ((f"{path}.{k}", item) for k, item in (function.__kwdefaults__ or {}).items())
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f"{path}.{name}", function.__globals__[name]


def _attributes(value: object) -> Iterator[tuple[str, Any]]:
    state = getattr(value, "__dict__", {})
    for name, item in state.items():
        if not (isinstance(value, nn.Module) and name == "_modules"):
            yield name, item
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                yield name, getattr(value, name)
