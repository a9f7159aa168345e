"""Which modules the receiver of a pickle can import, and which must go by value."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

import cloudpickle


@contextmanager
def by_value(module: str | None, can_be_imported: Callable[[str], bool]) -> Iterator[None]:
    """Have what a module defines pickled by value for a while, if the receiver lacks the module."""
    if module == "__main__" or module not in sys.modules or can_be_imported(module):
        yield  # `__main__` goes by value in any case
        return
    cloudpickle.register_pickle_by_value(sys.modules[module])
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[module])


def can_be_imported(name: str) -> bool:
    """Whether a fresh process with our sys.path would find the same module under this name."""
    spec = getattr(sys.modules[name], "__spec__", None)
    if name in sys.builtin_module_names or (spec is not None and spec.origin == "frozen"):
        return True
    parent = name.rpartition(".")[0]
    if parent in sys.modules and not can_be_imported(parent):
        return False
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    if parent and path is None:
        return True  # an extension's own submodule: importing its parent makes it
    try:
        found = PathFinder.find_spec(name, path)
    except (ImportError, ValueError):
        found = None
    ours = getattr(sys.modules[name], "__file__", None)
    if found is None:  # made by other modules while they are imported, unless it is a directory
        return ours is None and not getattr(sys.modules[name], "__path__", None)
    return (
        ours is None
        or found.origin is None
        or os.path.realpath(found.origin) == os.path.realpath(ours)
    )


def is_installed(name: str) -> bool:
    """Whether a module belongs to Python or to an installed package."""
    if name.partition(".")[0] == "etascope":
        return True  # it may run from its source, but no worker runs without it
    file = getattr(sys.modules[name], "__file__", None)
    return file is None or any(
        Path(os.path.realpath(file)).is_relative_to(root) for root in _installation()
    )


@cache
def _installation() -> frozenset[str]:
    """The directories of the standard library and of installed packages."""
    paths = sysconfig.get_paths()
    standard = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return frozenset(
        map(os.path.realpath, {*standard, *site.getsitepackages(), site.getusersitepackages()})
    )
