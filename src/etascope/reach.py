"""What code of the user's can reach: the objects that its functions close over, name or hold.

A dataset's transforms, the variables around a loss, the globals that its code names, the attributes
of all of them. Random generators of the user's own and state outside a trial are found by it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

MOST_OBJECTS = 50_000  # looked at in all; what holds more is data rather than code
MOST_NAMES = 3  # that a message lists
SMALL = 1 << 16  # numbers in a tensor or array up to which its content is looked at
MOST_TRIES = 8  # of listing a container that changes meanwhile
MOST_MEMBERS = 64  # of a container: what holds more holds many of one kind
NAMED_IN = {"_parameters", "_buffers", "_modules"}  # dicts of a module that its names leave out
HOOKS = frozenset(vars(nn.Module())) - NAMED_IN - {"training"}

_LOOKS = itertools.count()
ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.Tensor, np.generic)
_PLAIN_CLASSES = ("types", "argparse", "dataclasses", "collections")


def reachable(roots: Mapping[str, object]) -> Iterator[tuple[str, Any]]:
    """Every object that code can reach from `roots`, nearest first, each once, with its path.

    A path reads as the user would write it: `train.dataset.calls`, `loss.counter` for a variable
    that a function closes over, `package.module.COUNT` for a global. It is the same in every
    process that holds the same objects.

    >>> def loss_around(calls):
    ...     return lambda model, batch: calls
    >>> dict(reachable({"loss": loss_around({"seen": 3})}))["loss.calls['seen']"]
    3
    """
    waiting = deque(roots.items())
    seen: dict[int, Any] = {}  # holds what it names, or an identity might be given out again
    while waiting and len(seen) < MOST_OBJECTS:
        path, value = waiting.popleft()
        if not isinstance(value, ATOMS):
            if id(value) in seen:
                continue
            seen[id(value)] = value
            waiting.extend(_members(path, value))
        yield path, value


def _members(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, by path."""
    for kinds, members in _MEMBERS:
        if isinstance(value, kinds):
            return members(path, value)
    return _of_object(path, value)


def _of_method(path: str, value: types.MethodType) -> Iterator[tuple[str, Any]]:
    yield path, value.__self__
    yield path, value.__func__


def _of_partial(path: str, value: functools.partial[Any]) -> Iterator[tuple[str, Any]]:
    yield path, value.func
    for name, item in (*enumerate(value.args), *value.keywords.items()):
        yield f"{path}.{name}", item


def _of_wrapper(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield path, value.fget if isinstance(value, property) else value.__func__


def _of_dict(path: str, value: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, item in _first(dict.items(value)):
        yield f"{path}[{_short(key)}]", item


def _of_sequence(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    for number, item in enumerate(_first(value)):
        yield f"{path}[{number}]", item


def _of_nothing(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The members of a set have no order that another process would repeat."""
    return iter(())


def _of_generator(path: str, value: types.GeneratorType[Any, Any, Any]) -> Iterator[Any]:
    for name, item in (value.gi_frame.f_locals if value.gi_frame else {}).items():
        yield f"{path}.{name}", item


def _of_class(path: str, value: type) -> Iterator[tuple[str, Any]]:
    if not is_foreign(value.__module__):
        for name, item in list(vars(value).items()):
            if not name.startswith("__") or isinstance(item, types.FunctionType):
                yield f"{value.__module__}.{value.__qualname__}.{name}", item


def _of_function(path: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    if is_foreign(function.__module__ or ""):
        return
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            yield f"{path}.{name}", cell.cell_contents
        except ValueError:  # a variable that has no value yet
            continue
    for number, default in enumerate(function.__defaults__ or ()):
        yield f"{path}.{number}", default
    for name, default in (function.__kwdefaults__ or {}).items():
        yield f"{path}.{name}", default
    yield from ((f"{path}.{name}", item) for name, item in vars(function).items())
    if is_ours(function.__module__ or ""):
        return
    for name in sorted(set(_names(function.__code__))):
        item = function.__globals__.get(name)
        if isinstance(item, types.ModuleType):
            yield from _of_module(item, function.__code__)
        elif name in function.__globals__:
            yield f"{function.__module__}.{name}", item


def _of_module(module: types.ModuleType, code: types.CodeType) -> Iterator[tuple[str, Any]]:
    """The globals of another file that a function's code names."""
    if is_foreign(module.__name__):
        return
    for name in sorted(set(_names(code))):
        if name in vars(module) and not isinstance(vars(module)[name], types.ModuleType):
            yield f"{module.__name__}.{name}", vars(module)[name]


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _of_object(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    kind = type(value)
    if hasattr(value, "cache_info"):  # a function that keeps its results
        yield path, value.__wrapped__
    top = kind.__module__.partition(".")[0]
    if top in sys.stdlib_module_names and top not in _PLAIN_CLASSES:
        return
    if is_ours(kind.__module__):
        for item in attributes_of(value).values():
            yield path, item
        return
    for name, item in attributes_of(value).items():
        if isinstance(value, nn.Module) and name in NAMED_IN:
            yield from ((f"{path}.{key}", part) for key, part in list(item.items()))
        elif not isinstance(value, nn.Module) or name not in HOOKS:
            yield f"{path}.{name}", item
        elif isinstance(item, dict):
            yield from ((f"{path}.{name}", hook) for hook in list(item.values()))
    yield path, kind


def prints_of(roots: Mapping[str, object]) -> dict[str, str]:
    """What all that code can reach looks like now, by path: see `reachable` and `print_of`."""
    prints = ((path, print_of(value)) for path, value in reachable(roots))
    return {path: shown for path, shown in prints if shown is not None}


def names_of(changed: list[str]) -> str:
    """Paths as a list in prose, without those below another one; empty where there are none."""
    known = list(dict.fromkeys(changed))
    apart = [
        p for p in known if not any(p != q and p.startswith((f"{q}.", f"{q}[")) for q in known)
    ]
    names = [f"`{path}`" for path in apart[:MOST_NAMES]]
    more = f" and {len(apart) - MOST_NAMES} more" if len(apart) > MOST_NAMES else ""
    return ", ".join(names) + more


def print_of(value: Any) -> str | None:
    """What an object looks like from outside, to tell whether it changed; None for code."""
    for kinds, shown in _PRINTS:
        if isinstance(value, kinds):
            return shown(value)
    return str(value.cache_info()) if hasattr(value, "cache_info") else None


def attributes_of(value: Any) -> dict[str, Any]:
    """The attributes that an object itself holds, in its dict and in its slots."""
    found = dict(getattr(value, "__dict__", None) or {})
    kind: Any = type(value)
    for name, member in _slots(kind):
        try:
            found[name] = member.__get__(value)
        except AttributeError:  # a slot without a value
            continue
    return found


@functools.lru_cache(4096)
def _slots(kind: type) -> tuple[tuple[str, types.MemberDescriptorType], ...]:
    found = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            member = vars(base).get(name)
            if isinstance(member, types.MemberDescriptorType):
                found.append((name, member))
    return tuple(found)


def _array_print(value: np.ndarray[Any, Any]) -> str:
    small = value.size < SMALL and not value.dtype.hasobject
    return f"{value.shape} {hash(value.tobytes()) if small else ''}"


def _tensor_print(value: torch.Tensor) -> str:
    small = value.numel() < SMALL and value.layout is torch.strided and not value.is_meta
    return f"{tuple(value.shape)} {value._version} {value.double().norm() if small else ''}"


def _iterator_print(value: Iterator[Any]) -> str:
    """How much is left; another text each time where nobody can tell."""
    left = operator.length_hint(value, -1)
    return f"{left} left" if left >= 0 else f"look {next(_LOOKS)}"


def is_ours(module: str) -> bool:
    """Whether a module is etascope's own."""
    return module.partition(".")[0] == "etascope"


@functools.cache
def is_foreign(module: str) -> bool:
    """Whether a module is a library's, whose code keeps no state of the user's."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in ("torch", "numpy"):
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def _first(values: Any) -> list[Any]:
    """The first members of a container; a list, since the container may change meanwhile.

    Making the list may set the collector off, which takes members out of weak containers: then it
    is made again.
    """
    for _ in range(MOST_TRIES):
        with contextlib.suppress(RuntimeError):
            return list(itertools.islice(values, MOST_MEMBERS))
    return []


def _short(key: Any) -> str:
    return repr(key)[:40] if isinstance(key, (str, int, float)) else type(key).__name__


_MEMBERS: tuple[tuple[Any, Callable[[str, Any], Iterator[tuple[str, Any]]]], ...] = (
    (types.FunctionType, _of_function),
    (types.MethodType, _of_method),
    (functools.partial, _of_partial),
    ((staticmethod, classmethod, property), _of_wrapper),
    (dict, _of_dict),
    ((list, tuple, deque), _of_sequence),
    ((set, frozenset, types.ModuleType, types.CodeType, types.MappingProxyType), _of_nothing),
    (types.GeneratorType, _of_generator),
    (type, _of_class),
)
_PRINTS: tuple[tuple[Any, Callable[[Any], str]], ...] = (
    (torch.Tensor, _tensor_print),
    (np.ndarray, _array_print),
    ((*ATOMS[:-2], np.generic, itertools.count), lambda value: repr(value)[:200]),
    ((list, tuple, dict, set, frozenset, deque), lambda value: f"{len(value)} members"),
    (types.GeneratorType, lambda value: f"at {value.gi_frame and value.gi_frame.f_lasti}"),
    (Iterator, _iterator_print),
)
