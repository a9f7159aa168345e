"""The door: each part that cannot work is named, before any training."""

import math

import pytest
import torch
from small import blobs_problem, line_problem
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

import etascope as es
from etascope.problems.checks import inspect


def check(problem):
    return inspect(problem, 1000)


def raising(*_):
    raise RuntimeError("boom")


class Uncounted(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1), torch.zeros(1)


calls = {"n": 0}


def restless(model, batch):
    calls["n"] += 1
    return (model(batch[0]) - batch[1]).square().mean() * calls["n"]


own_generator = torch.Generator().manual_seed(0)


def secretly_random():
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.normal_(generator=own_generator)
    return layer


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": raising}, "model factory raised RuntimeError: boom"),
        ({"model": lambda: 3}, "model factory returned a int"),
        ({"model": nn.ReLU}, "no parameter to train"),
        ({"model": lambda: nn.LazyLinear(1)}, "lazy parameters"),
        ({"model": secretly_random}, "two different models under one seed"),
        ({"loss": raising}, "loss raised RuntimeError: boom"),
        ({"loss": lambda m, b: (m(b[0]) - b[1]).square()}, r"shape \(8, 1\)"),
        ({"loss": lambda m, b: 0.5}, "returned a float"),
        ({"loss": lambda m, b: torch.tensor(1.0)}, "does not depend on any parameter"),
        ({"loss": lambda m, b: m(b[0]).mean() * math.nan}, "untrained model is nan"),
        ({"loss": lambda m, b: m(b[0]).mean() / 0}, "untrained model is -?inf"),
        ({"loss": restless}, "same weights, batch and seed"),
        ({"metric": raising}, "metric raised RuntimeError: boom"),
        ({"metric": lambda m, b: torch.zeros(2, 2)}, r"metric returned shape \(2, 2\)"),
        ({"train": lambda seed, epoch: []}, "train gives no batch"),
        ({"train": lambda seed, epoch: raising()}, "train data raised RuntimeError"),
        ({"valid": lambda seed, epoch: []}, "valid gives no batch"),
    ],
)
def test_the_part_that_does_not_work_is_named(changes, told):
    with pytest.raises(es.UsageError, match=told):
        check(line_problem(**changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"loss": None}, "loss is a NoneType"),
        ({"model": 3}, "model is a int"),
        ({"model": dict}, "no nn.Module"),
        ({"metric": 3}, "metric is a int"),
        ({"train": 3}, "train is a int"),
        ({"train": {"x": 1}}, "train is a dict"),
        ({"train": (torch.zeros(3), torch.zeros(4))}, r"\[3, 4\] examples"),
        ({"train": torch.zeros(0, 1)}, "train holds no examples"),
        ({"train": Uncounted()}, "IterableDataset"),
        ({"valid": DataLoader(Uncounted())}, "order of its own"),
        (
            {"train": DataLoader([1, 2], sampler=WeightedRandomSampler([1.0, 2.0], 2))},
            "order of its own",
        ),
        ({"chance": math.nan}, "chance is nan"),
        ({"device": "abacus"}, "no device is called 'abacus'"),
    ],
)
def test_a_problem_of_the_wrong_kinds_is_refused(changes, told):
    with pytest.raises(es.UsageError, match=told):
        line_problem(**changes)


# The fingerprint ------------------------------------------------------------------------------


def test_the_fingerprint_knows_the_problem_by_its_numbers():
    one = check(blobs_problem()).fingerprint
    assert check(blobs_problem(name="other")).fingerprint == one
    assert check(blobs_problem(batch_size=10)).fingerprint != one
    assert check(blobs_problem(model=lambda: nn.Linear(2, 3))).fingerprint != one
    weighted = blobs_problem(
        loss=lambda m, b: 2 * nn.functional.cross_entropy(m(b[0]), b[1]),
    )
    assert check(weighted).fingerprint != one


def test_the_fingerprint_knows_the_held_out_set():
    x, y = line_problem().valid
    one = check(line_problem()).fingerprint
    assert check(line_problem(valid=(x, y + 1))).fingerprint != one


def test_a_metric_of_another_length_than_the_batch_is_refused():
    problem = blobs_problem(metric=lambda m, b: (m(b[0]).argmax(-1) == b[1])[:3])
    with pytest.raises(es.UsageError, match=r"shape \(3,\) for 10 examples"):
        check(problem)
