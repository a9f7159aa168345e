"""What a batch holds: it keeps its type and place, and tells how many examples it is."""

import types
from collections import OrderedDict, UserDict, UserList, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from etascope.problems.contents import examples_in, tensors_of, to_device

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")  # a device that every machine has


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    names: list[str]


@dataclass(slots=True)
class Slotted:
    x: torch.Tensor
    more: dict[str, Any] = field(default_factory=dict)


class Plain:
    def __init__(self, x, note="kept"):
        self.x, self.note = x, note


class Mover:
    """An object that is moved by its own `to`."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        return Mover(self.x.to(device))


class SelfMover(Plain):
    def to(self, device):
        self.x = self.x.to(device)


def a(n=2):
    return torch.ones(n)


BATCHES = {
    "tensor": a(),
    "tuple": (a(), a()),
    "list": [a(), ["a", "b"], None],
    "named tuple": Pair(a(), a()),
    "dict": {"x": a(), "n": 3},
    "ordered": OrderedDict(b=a(), a=a()),
    "default": defaultdict(list, x=a()),
    "user dict": UserDict(x=a()),
    "user list": UserList([a(), "a"]),
    "deque": deque([a(), a()]),
    "proxy": types.MappingProxyType({"x": a()}),
    "frozen dataclass": Frozen(a(), ["a", "b"]),
    "slots": Slotted(a(), {"y": a()}),
    "object": Plain(a()),
    "mover": Mover(a()),
    "self mover": SelfMover(a()),
    "packed": pack_sequence([a(3), a(2)]),
    "nested": {"list": [Pair(a(), a()), (Frozen(a(), []), np.ones(2))]},
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_on_the_cpu_a_batch_is_passed_on_as_it_is(batch):
    assert to_device(batch, CPU) is batch


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_elsewhere_a_batch_keeps_its_type_and_every_tensor_is_moved(batch):
    shapes = [t.shape for t in tensors_of(batch)]
    moved = to_device(batch, ELSEWHERE)
    assert type(moved) is type(batch)
    assert [t.shape for t in tensors_of(moved)] == shapes
    assert shapes
    if not isinstance(batch, SelfMover):
        assert {t.device.type for t in tensors_of(batch)} == {"cpu"}  # the user's is left alone
    if not isinstance(batch, type(BATCHES["packed"])):  # its batch sizes belong on the CPU
        assert {t.device.type for t in tensors_of(moved)} == {"meta"}
    assert to_device(moved, ELSEWHERE) is moved


def test_what_is_no_tensor_stays_the_same_object():
    names, array, opaque = ["a"], np.ones(2), object()
    batch = {"x": a(), "names": names, "array": array, "opaque": opaque, "pair": (1, None)}
    moved = to_device(batch, ELSEWHERE)
    assert all(moved[key] is batch[key] for key in batch if key != "x")
    assert moved["x"].device.type == "meta"
    assert to_device(names, ELSEWHERE) is names


def test_mappings_keep_their_order_and_their_default():
    moved = to_device(BATCHES["default"], ELSEWHERE)
    assert moved["missing"] == []
    assert list(to_device(BATCHES["ordered"], ELSEWHERE)) == ["b", "a"]


def test_a_batch_that_refers_to_itself_is_no_endless_walk():
    batch = Plain(a())
    batch.batch = batch
    assert len(list(tensors_of(batch))) == 1
    assert examples_in(batch) == 2
    assert to_device(batch, ELSEWHERE).x.device.type == "meta"


B, T = 3, 5  # examples and time steps


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (torch.zeros(B, 2), B),
        ((torch.zeros(B, T), torch.zeros(B)), B),
        ([torch.zeros(B, T), torch.zeros(B)], B),
        ({"x": torch.zeros(B, 2), "scale": torch.tensor(2.0), "name": "a"}, B),
        ((torch.zeros(B, 4, 4), (28, 28)), B),
        ((np.zeros((B, 2)), np.zeros(B)), B),
        (Frozen(torch.zeros(B), ["a"] * B), B),
        (Plain(torch.zeros(B)), B),
        (pack_sequence([a(5), a(2), a(1)]), B),
        ((pack_sequence([a(5), a(2), a(1)]), torch.zeros(B)), B),
        (([a(5), a(2), a(1)], torch.zeros(B)), B),
        (([torch.zeros(3, T, T)] * 2, [{"boxes": torch.zeros(n, 4)} for n in (1, 4)]), 2),
        ([[torch.zeros(B), torch.zeros(B)], torch.zeros(B)], B),
        ({"x": torch.zeros(10, 4), "edges": torch.zeros(2, 30), "y": torch.zeros(B)}, B),
        ({"input_ids": torch.zeros(T, B), "labels": torch.zeros(B)}, B),
        (["a", "b", "c"], B),
        (torch.tensor(1.0), 1),
        (None, 1),
        ((torch.zeros(T, B, 2), torch.zeros(B)), None),
        ([a(5), a(2), a(1)], None),
        ((torch.zeros(10, 4), torch.zeros(2, 30)), None),
        ({"a": torch.zeros(10, 4), "b": torch.zeros(2, 30)}, None),
    ],
)
def test_the_number_of_examples_is_told_by_parts_that_agree(batch, told):
    assert examples_in(batch) == told
