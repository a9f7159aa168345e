"""One schema for all that is read: what was written comes back, and nothing else does."""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etascope.encoding import to_json
from etascope.schema import (
    DEEPEST_CLASS,
    Count,
    PositiveFloat,
    SchemaError,
    Whole,
    decode,
    decoder,
)


class Spot(NamedTuple):
    low: float | None
    high: float = 1.0


class Options(TypedDict):
    depth: Count


@dataclass(frozen=True)
class Leaf:
    number: float
    count: Annotated[int, Whole(-3, 3)]
    name: str
    sure: bool
    kind: Literal["a", "b"]
    spots: tuple[Spot, ...]
    pair: tuple[int, str]
    maybe: PositiveFloat | None = None
    more: dict[str, str | int | None] = field(default_factory=dict)
    options: Options = field(default_factory=lambda: {"depth": 1})
    anything: Any = None


@dataclass(frozen=True)
class Tree:
    name: str
    children: "tuple[Tree, ...]" = ()


numbers = st.floats(allow_nan=False)
leaves = st.builds(
    Leaf,
    number=numbers,
    count=st.integers(-3, 3),
    name=st.text(max_size=3),
    sure=st.booleans(),
    kind=st.sampled_from(["a", "b"]),
    spots=st.lists(st.builds(Spot, st.none() | numbers, numbers), max_size=2).map(tuple),
    pair=st.tuples(st.integers(-(2**63), 2**64 - 1), st.text(max_size=2)),
    maybe=st.none() | st.floats(1e-9, 1e9),
    more=st.dictionaries(st.text(max_size=2), st.none() | st.integers(-9, 9) | st.text(max_size=2)),
    anything=st.recursive(st.none() | st.integers(-9, 9), st.lists, max_leaves=4),
)
GOOD = Leaf(1.0, 2, "n", True, "a", (Spot(None),), (1, "x"))


@given(leaves)
def test_what_was_written_comes_back(leaf):
    assert decode(Leaf, json.loads(json.dumps(to_json(asdict(leaf))))) == leaf


def test_numbers_that_are_not_finite_stand_as_words():
    assert decode(float, "inf") == math.inf
    assert math.isnan(decode(float, "nan"))


def test_a_field_with_a_default_may_be_missing():
    assert decode(Tree, {"name": "a"}) == Tree("a")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"number": True}, "number is True, not a number"),
        ({"number": "1"}, "number is '1', not a number"),
        ({"number": None}, "number is None"),
        ({"count": 4}, "count is 4, not a whole number from -3 to 3"),
        ({"count": 1.0}, "count is 1.0, not a whole number"),
        ({"count": True}, "count is True"),
        ({"name": 3}, "name is 3, not a text"),
        ({"sure": 1}, "sure is 1, not true or false"),
        ({"kind": "c"}, "kind is 'c', not one of a, b"),
        ({"kind": []}, "kind is"),
        ({"spots": {}}, "spots is {}, not an array"),
        ({"spots": [[1, 2, 3]]}, r"spots\[0\] is"),
        ({"spots": [[1, 2], {"high": 1}]}, r"spots\[1\] has no low"),
        ({"pair": [1]}, "pair is"),
        ({"pair": [1, 2]}, "pair is|pair"),
        ({"maybe": 0}, "maybe is 0, not a positive"),
        ({"maybe": "inf"}, "maybe is 'inf', not a positive"),
        ({"more": {"k": []}}, r"more\['k'\] is"),
        ({"options": {}}, "options has no depth"),
        ({"options": {"depth": 0}}, "options.depth is 0"),
        ({"other": 1}, "it has 'other', which this version does not know"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(changes, told):
    values = {**json.loads(json.dumps(asdict(GOOD))), **changes}
    with pytest.raises(SchemaError, match=told):
        decode(Leaf, values)
    shuffled = dict(reversed(values.items()))
    with pytest.raises(SchemaError, match=told):
        decode(Leaf, shuffled)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(json_values, st.sampled_from([*asdict(GOOD), "other"]))
def test_any_value_is_decoded_or_a_short_sentence(value, name):
    try:
        decode(Leaf, {**json.loads(json.dumps(asdict(GOOD))), name: value})
    except SchemaError as error:
        assert len(str(error)) < 200  # noqa: PT017


def test_what_holds_itself_has_a_depth():
    tree: dict[str, object] = {"name": "leaf"}
    for _ in range(DEEPEST_CLASS - 1):
        tree = {"name": "branch", "children": [tree]}
    assert decode(Tree, tree).name == "branch"
    with pytest.raises(SchemaError, match="too deeply") as said:
        decode(Tree, {"name": "root", "children": [tree]})
    assert len(str(said.value)) < 200
    assert decode(Tree, tree).name == "branch"  # a refusal leaves nothing behind


def test_a_class_is_compiled_once():
    assert decoder(Leaf) is decoder(Leaf)
    with pytest.raises(TypeError, match="no schema"):
        decoder(complex)
