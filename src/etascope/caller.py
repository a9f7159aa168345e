"""The process of the caller, put back as it was when a public function returns or raises.

Training sets random states and imports much: torch's compiler, which an optimizer's first step
loads, names a directory in the environment and adds to the filters of warnings, as scipy does.
None of this belongs to the caller. Whatever is imported stays imported.
"""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def left_as_it_was() -> Iterator[None]:
    """Put back environment, filters of warnings and global random states, whatever happens.

    Also a decorator. numpy's and torch's states are looked at where these are loaded.

    Example:
        >>> @left_as_it_was()
        ... def draw():
        ...     os.environ["DRAWN"] = str(random.random())
        >>> before = random.getstate()
        >>> draw()
        >>> "DRAWN" in os.environ, random.getstate() == before
        (False, True)
    """
    environment = dict(os.environ)
    python, numpy, torch = random.getstate(), _numpy_state(), _torch_state()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            sys.modules["numpy"].random.set_state(numpy)
        if torch is not None:
            sys.modules["torch"].set_rng_state(torch)
        _restore_environment(environment)


def _numpy_state() -> Any:
    numpy = sys.modules.get("numpy")
    return None if numpy is None else numpy.random.get_state()


def _torch_state() -> Any:
    torch = sys.modules.get("torch")
    return None if torch is None else torch.get_rng_state()


def _restore_environment(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
