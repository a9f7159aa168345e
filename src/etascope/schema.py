"""What is read from a file, checked against the annotations of the class that it is to become.

`decoder` compiles the annotations of a dataclass, a NamedTuple or a TypedDict once to a function
from JSON values to the class. It takes what was written and nothing else: every field that has no
default, no other field, no value of another type. What is wrong is a `SchemaError`, one short line
that names the place.

    JSON                                    annotation
    number, or "nan", "inf", "-inf"         float
    number without a fraction               int
    array                                   tuple[X, ...], tuple[X, Y], list[X], a NamedTuple
    object                                  a dataclass, a NamedTuple, a TypedDict, Mapping[str, X]
    any of several plain values             X | None, Literal, a union of plain types
    anything                                Any, to a depth of 32

Numbers can have bounds: `Annotated[int, Whole(0)]`, `Annotated[float, Positive()]`.
"""

from __future__ import annotations

import collections.abc
import math
import reprlib
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

T = TypeVar("T")
Decode = Callable[[Any], Any]

DEEPEST_VALUE = 32  # arrays and objects inside each other, where anything is allowed
DEEPEST_CLASS = 100  # values of one class inside each other, such as the frames of a call
LONGEST_PLACE = 60  # characters of a message
EXACT = 1 << 53  # whole numbers up to here are exact as floats, too
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
PLAIN = {str, int, float, bool, type(None)}


class SchemaError(ValueError):
    """A value is not what the annotations ask for; the message names its place."""

    def __init__(self, problem: str, place: str = "") -> None:
        shown = place.removeprefix(".")
        if len(shown) > LONGEST_PLACE:
            shown = f"…{shown[-LONGEST_PLACE:]}"
        super().__init__(f"{shown or 'it'} {problem}")
        self.problem, self.place = problem, place

    def inside(self, place: str) -> SchemaError:
        """The same, seen from the value around it."""
        return SchemaError(self.problem, place + self.place)


class Whole(NamedTuple):
    """The bounds of an int, both included."""

    least: int
    most: int = EXACT


class Positive(NamedTuple):
    """A bound of a float: above 0 and finite."""


Natural = Annotated[int, Whole(0)]
Count = Annotated[int, Whole(1)]
PositiveFloat = Annotated[float, Positive()]


def decode(kind: type[T], value: Any) -> T:
    """`value` as the class; raises SchemaError where it is another one's."""
    try:
        decoded: T = decoder(cast(Any, kind))(value)
    except RecursionError:
        raise SchemaError("is nested too deeply") from None
    return decoded


@cache
def decoder(kind: Any) -> Decode:
    """The function from JSON values to `kind`; it raises SchemaError."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind in SCALARS:
        made = SCALARS[kind]
    elif origin is Annotated:
        made = _bounded(decoder(inner[0]), inner[1])
    elif origin is Literal:
        made = _one_of(inner)
    elif origin in (Union, types.UnionType):
        made = _union(inner)
    elif origin is tuple and inner[-1] is not Ellipsis:
        made = _pair(tuple(map(decoder, inner)))
    elif origin in (tuple, list, collections.abc.Sequence):
        made = _items(inner[0], list if origin is list else tuple)
    elif origin in (dict, collections.abc.Mapping) and inner[0] is str:
        made = _mapping(decoder(inner[1]))
    else:
        made = _class(kind)
    return made


def _class(kind: Any) -> Decode:
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        names = tuple(hints)

        def make(*values: Any, **named: Any) -> dict[str, Any]:
            return {**dict(zip(names, values, strict=False)), **named}

        return _record(make, hints, kind.__required_keys__)
    if is_dataclass(kind):
        optional = {f.name for f in fields(kind) if not f.default is f.default_factory is MISSING}
        return _dataclass(kind, optional)
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _named_tuple(kind)
    raise TypeError(f"no schema can be made of {kind}")


# Plain values ---------------------------------------------------------------------------------


def _wrong(value: Any, wanted: str) -> SchemaError:
    return SchemaError(f"is {_SHORT.repr(value)}, not {wanted}")


def _float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    if type(value) is str and value in NOT_FINITE:
        return NOT_FINITE[value]
    raise _wrong(value, "a number")


def _int(value: Any) -> int:
    if type(value) is int:
        return value
    raise _wrong(value, "a whole number")


def _str(value: Any) -> str:
    if type(value) is str:
        return value
    raise _wrong(value, "a text")


def _bool(value: Any) -> bool:
    if type(value) is bool:
        return value
    raise _wrong(value, "true or false")


def _none(value: Any) -> None:
    if value is not None:
        raise _wrong(value, "null")


def _anything(value: Any, depth: int = 0) -> Any:
    if depth > DEEPEST_VALUE:
        raise SchemaError("is nested too deeply")
    if type(value) is dict:
        return {key: _anything(item, depth + 1) for key, item in value.items()}
    if type(value) is list:
        return [_anything(item, depth + 1) for item in value]
    return value


SCALARS: dict[Any, Decode] = {
    float: _float,
    int: _int,
    str: _str,
    bool: _bool,
    type(None): _none,
    Any: _anything,
}


def _bounded(inner: Decode, bound: Whole | Positive) -> Decode:
    def positive(value: Any) -> Any:
        number = inner(value)
        if not 0 < number < math.inf:
            raise _wrong(value, "a positive, finite number")
        return number

    if isinstance(bound, Positive):
        return positive
    least, most = bound
    wanted = f"a whole number from {least} to {most}"

    def whole(value: Any) -> Any:
        if type(value) is not int or not least <= value <= most:
            raise _wrong(value, wanted)
        return value

    return whole


def _one_of(choices: tuple[Any, ...]) -> Decode:
    def one_of(value: Any) -> Any:
        if type(value) not in PLAIN or value not in choices:
            raise _wrong(value, f"one of {', '.join(map(str, choices))}")
        return value

    return one_of


def _union(kinds: tuple[Any, ...]) -> Decode:
    if PLAIN.issuperset(kinds):
        wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)

        def plain(value: Any) -> Any:
            if type(value) in kinds:
                return value
            if float in kinds and type(value) is int:
                return float(value)
            raise _wrong(value, wanted)

        if float not in kinds or str in kinds:
            return plain
    present = [kind for kind in kinds if kind is not type(None)]
    if len(present) != 1 or len(kinds) != 2:
        raise TypeError(f"no schema can be made of a union of {kinds}")
    inner = decoder(present[0])
    return lambda value: None if value is None else inner(value)


# Arrays ---------------------------------------------------------------------------------------


def _items(kind: Any, make: type[Any]) -> Decode:
    inner, quick = decoder(kind), _quick(kind)

    def items(value: Any) -> Any:
        if type(value) is not list:
            raise _wrong(value, "an array")
        if not value or (quick is not None and quick(value)):
            return make(value)
        decoded: list[Any] = []
        try:
            for item in value:
                decoded.append(inner(item))  # its length is the place of a mismatch
        except SchemaError as error:
            raise error.inside(f"[{len(decoded)}]") from None
        return make(decoded)

    return items


def _quick(kind: Any) -> Callable[[list[Any]], bool] | None:
    """Whether all items are plainly of the kind, told without a call for each, where it can be."""
    if kind in (float, int, str):
        same = frozenset((kind,))
        return lambda items: same.issuperset(map(type, items))
    if get_origin(kind) is Annotated and isinstance(bounds := get_args(kind)[1], Whole):
        least, most = bounds
        whole = frozenset((int,))
        return lambda items: (
            whole.issuperset(map(type, items)) and least <= min(items) and max(items) <= most
        )
    return None


def _pair(inner: tuple[Decode, ...]) -> Decode:
    def pair(value: Any) -> Any:
        if type(value) is not list or len(value) != len(inner):
            raise _wrong(value, f"an array of {len(inner)}")
        return tuple([decode(item) for decode, item in zip(inner, value, strict=True)])

    return pair


# Objects --------------------------------------------------------------------------------------


def _mapping(inner: Decode) -> Decode:
    def mapping(value: Any) -> Any:
        if type(value) is not dict:
            raise _wrong(value, "an object")
        decoded: dict[str, Any] = {}
        key = ""
        try:
            for key, item in value.items():
                decoded[key] = inner(item)
        except SchemaError as error:
            raise error.inside(f"[{_SHORT.repr(key)}]") from None
        return decoded

    return mapping


def _record(
    make: Callable[..., Any], hints: Mapping[str, Any], required: collections.abc.Set[str]
) -> Decode:
    names, inner = tuple(hints), tuple(map(decoder, hints.values()))
    parts = dict(zip(names, inner, strict=True))
    plain = tuple(hint if hint in (float, int, str, bool) else Any for hint in hints.values())

    def in_order(value: Any) -> Any:
        """The usual case, at half the price: every field is there, in its order."""
        decoded: list[Any] = []
        try:
            for decode, same, item in zip(inner, plain, value.values(), strict=True):
                # The length of what is decoded is the place of a mismatch.
                decoded.append(item if type(item) is same else decode(item))
        except SchemaError as error:
            raise error.inside(f".{names[len(decoded)]}") from None
        return make(*decoded)

    def record(value: Any) -> Any:
        if type(value) is not dict:
            raise _wrong(value, "an object")
        if tuple(value) == names:
            return in_order(value)
        if missing := required - value.keys():
            raise SchemaError(f"has no {min(missing)}")
        if unknown := value.keys() - parts.keys():
            name = _SHORT.repr(min(unknown))
            raise SchemaError(f"has {name}, which this version does not know")
        decoded: dict[str, Any] = {}
        name = ""
        try:
            for name, item in value.items():
                decoded[name] = parts[name](item)
        except SchemaError as error:
            raise error.inside(f".{name}") from None
        return make(**decoded)

    return record


def _dataclass(kind: Any, optional: set[str]) -> Decode:
    """A dataclass, whose fields may hold values of the same class to a bounded depth."""
    state: dict[str, Any] = {"depth": 0}

    def made(value: Any) -> Any:
        inner = state.get("decode")
        if inner is None:  # compiled when it is first used, since it may name itself
            hints = get_type_hints(kind, include_extras=True)
            inner = state["decode"] = _record(kind, hints, hints.keys() - optional)
        if state["depth"] >= DEEPEST_CLASS:
            raise SchemaError("is nested too deeply")
        state["depth"] += 1
        try:
            return inner(value)
        finally:
            state["depth"] -= 1

    return made


def _named_tuple(kind: Any) -> Decode:
    hints = get_type_hints(kind, include_extras=True)
    as_object = _record(kind, hints, hints.keys() - kind._field_defaults.keys())
    as_array = _pair(tuple(map(decoder, hints.values())))

    def named_tuple(value: Any) -> Any:
        return kind(*as_array(value)) if type(value) is list else as_object(value)

    return named_tuple


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 40
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxtuple = 2
_SHORT.maxlevel = 2
