"""What callers pass, checked and made plain: one sentence that names it where it cannot work."""

from __future__ import annotations

import math
import operator
import os
import reprlib
from pathlib import Path
from typing import Any

from etascope.errors import UsageError


def whole(name: str, value: object, *, least: int) -> int:
    """`value` as an int of `least` or more; integers of numpy and of torch are integers.

    >>> whole("steps", 10, least=1)
    10
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        raise UsageError(f"{name} is {value!r}; it must be a whole number of {least} or more")
    return number


def finite(name: str, value: object) -> float:
    """`value` as a float; scalars of numpy and tensors without a dimension are numbers too.

    >>> finite("chance", 2)
    2.0
    """
    number = _float(value)
    if not math.isfinite(number):
        raise UsageError(f"{name} is {reprlib.repr(value)}; it must be a finite number")
    return number


def positive(name: str, value: object, *, or_zero: bool = False) -> float:
    """`value` as a finite float above 0, or of 0 where that is allowed.

    >>> positive("weight_decay", 0, or_zero=True)
    0.0
    """
    number = _float(value)
    if not (0 < number < math.inf or (or_zero and number == 0)):
        raise UsageError(
            f"{name} is {reprlib.repr(value)}; it must be a positive, finite number"
            + (" or 0" if or_zero else "")
        )
    return number


def items(value: object) -> list[Any] | None:
    """The items of an iterable; None for text and for what cannot be iterated, such as a number.

    >>> items((1, 2)), items(3), items("ab")
    ([1, 2], None, None)
    """
    try:
        return None if isinstance(value, (str, bytes)) else list(value)  # type: ignore[call-overload]
    except TypeError:  # also a tensor or an array without a dimension
        return None


def check_out(out: str | os.PathLike[str]) -> Path:
    """The directory that `out` names; nothing is made.

    Raises:
        UsageError: for what is no path, names a file, or cannot be looked at.
    """
    if not isinstance(out, (str, os.PathLike)) or not isinstance(name := os.fspath(out), str):
        raise UsageError(f"out is {reprlib.repr(out)}; it must be the path of a directory")
    try:
        os.stat(name)
    except FileNotFoundError:
        if not name:
            raise UsageError("out is empty; it must be the path of a directory") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(
            f"out cannot be {reprlib.repr(name)} ({why}); it must be the path of a directory"
        ) from error
    else:
        if not os.path.isdir(name):
            raise UsageError(f"{name} is a file; --out names a directory")
    return Path(name)


def _float(value: object) -> float:
    """`value` as a float, or NaN where it is no single number."""
    if isinstance(value, (bool, str, bytes)) or getattr(value, "ndim", 0) != 0:
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan
