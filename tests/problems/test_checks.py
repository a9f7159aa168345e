"""The door: each part that cannot work is named, before any training."""

import math
import random
import sys

import numpy as np
import pytest
import torch
from small import blobs_problem, line_problem
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

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


def secretly_random():
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(random.SystemRandom().random())
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
        ({"loss": lambda m, b: sys.exit("enough")}, "loss raised SystemExit: enough"),
        ({"loss": lambda m, b: (m(b[0]) - b[1]).square()}, r"shape \(8, 1\)"),
        ({"loss": lambda m, b: 0.5}, "returned a float"),
        ({"loss": lambda m, b: torch.tensor(1.0)}, "does not depend on any parameter"),
        ({"loss": lambda m, b: m(b[0]).mean() * math.nan}, "untrained model is nan"),
        ({"loss": lambda m, b: m(b[0]).mean() / 0}, "untrained model is -?inf"),
        ({"loss": restless}, "same weights, batch and seed"),
        ({"metric": raising}, "metric raised RuntimeError: boom"),
        ({"metric": lambda m, b: torch.zeros(2, 2)}, r"metric returned shape \(2, 2\)"),
        ({"metric": lambda m, b: None}, "metric returned a NoneType; it must be one value"),
        ({"metric": lambda m, b: "good"}, "metric returned a str"),
        ({"metric": lambda m, b: {"accuracy": 1.0}}, "metric returned a dict"),
        ({"metric": lambda m, b: torch.zeros(8, dtype=torch.complex64)}, "a complex tensor"),
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
        ({"chance": "a"}, "chance is 'a'; it must be a finite number"),
        ({"chance": torch.zeros(2)}, "chance is tensor"),
        ({"device": "abacus"}, "no device is called 'abacus'"),
        ({"device": None}, "no device is called None"),
        ({"device": "meta"}, "'meta' is not on this machine, which has cpu"),
        ({"device": "cuda:77"}, "'cuda:77' is not on this machine, which has cpu"),
        ({"device": torch.device("meta")}, "'meta' is not on this machine"),
        ({"train": (np.zeros((4, 1)), [0, 1, 0, 1])}, "tuple of ndarray and list; make each"),
        ({"train": (torch.zeros(4, 1), None)}, "tuple of Tensor and NoneType"),
        ({"train": np.array(["a", "b"])}, "array of <U1, which torch cannot hold"),
        ({"train": np.zeros(2, object)}, "array of object, which torch cannot hold"),
    ],
)
def test_a_problem_of_the_wrong_kinds_is_refused(changes, told):
    with pytest.raises(es.UsageError, match=told):
        line_problem(**changes)


DIGITS = TensorDataset(torch.arange(12.0)[:, None], torch.arange(12.0)[:, None])


class Backwards(SequentialSampler):
    def __iter__(self):
        return reversed(range(len(self)))


class Twice(RandomSampler):
    pass


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sampler": RandomSampler(DIGITS, replacement=True)}, "order of its own"),
        ({"sampler": RandomSampler(DIGITS, num_samples=5)}, "order of its own"),
        ({"sampler": RandomSampler(DIGITS, num_samples=24)}, "order of its own"),
        ({"sampler": RandomSampler(range(3))}, "order of its own"),
        ({"sampler": Backwards(DIGITS)}, "order of its own"),
        ({"sampler": Twice(DIGITS)}, "order of its own"),
        ({"sampler": SequentialSampler(range(3))}, "order of its own"),
        ({"batch_sampler": BatchSampler(Backwards(DIGITS), 3, False)}, "order of its own"),
        ({"batch_sampler": [[0, 1], [2, 3]]}, "order of its own"),
        ({"batch_size": None}, "batch_size=None, so its dataset gives whole batches"),
        ({"batch_size": None, "shuffle": True}, "batch_size=None"),
    ],
)
def test_a_loader_that_cannot_be_repeated_is_refused_and_told_what_else_will_do(options, told):
    with pytest.raises(es.UsageError, match=told) as caught:
        line_problem(train=DataLoader(DIGITS, **options))
    assert "(seed, epoch) -> iterable of batches" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 3},
        {"batch_size": 3, "shuffle": True},
        {"batch_size": 3, "sampler": RandomSampler(DIGITS)},
        {"batch_sampler": BatchSampler(SequentialSampler(DIGITS), 3, False)},
    ],
)
def test_a_plain_loader_gives_its_dataset_and_batch_size(options):
    problem = line_problem(train=DataLoader(DIGITS, **options))
    assert problem.sources["train"].batches_per_epoch == 4


# Parameters that no optimizer sees -----------------------------------------------------------

temperature = nn.Parameter(torch.zeros(1))
slack = torch.zeros(1, requires_grad=True)
teacher = nn.Linear(1, 1)


@pytest.mark.parametrize(
    "loss",
    [
        lambda m, b: (m(b[0]) * temperature.exp() - b[1]).square().mean(),
        lambda m, b: (m(b[0]) - b[1]).square().mean() + slack.square().sum(),
        lambda m, b: (m(b[0]) - teacher(b[0])).square().mean(),
        lambda m, b: (teacher(b[0]) - b[1]).square().mean(),
    ],
    ids=["a learned temperature", "a tensor", "a teacher", "another model than the one given"],
)
def test_a_loss_with_parameters_of_its_own_is_refused_and_they_are_left_alone(loss):
    with pytest.raises(es.UsageError, match=r"parameters outside the model .*detach them"):
        check(line_problem(loss=loss))
    assert all(t.grad is None for t in (temperature, slack, *teacher.parameters()))


@torch.enable_grad()  # evaluations run without gradients
def derivative(model, batch):
    """A loss that differentiates by its input, as one of a differential equation does."""
    x = batch[0].detach().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return (model(x) - batch[1]).square().mean() + slope.square().mean()


def in_place(model, batch):
    batch[0].requires_grad_()
    return (model(batch[0]) - batch[1]).square().mean()


def distilled(model, batch):
    with torch.no_grad():
        aim = teacher(batch[0])
    return (model(batch[0]) - aim).square().mean()


@pytest.mark.parametrize("loss", [derivative, in_place, distilled])
def test_a_loss_may_differentiate_by_its_input_and_look_at_a_frozen_teacher(loss):
    assert check(line_problem(loss=loss)).parameters == 2


# Numbers and arrays --------------------------------------------------------------------------


@pytest.mark.parametrize("chance", [2, np.float32(2), np.array(2.0), torch.tensor(2.0)])
def test_chance_may_be_any_kind_of_number(chance):
    problem = line_problem(chance=chance)
    assert type(problem.chance) is float
    assert check(problem).chance.loss == 2.0


def test_arrays_of_numpy_stand_for_tensors():
    x, y = (t.numpy() for t in line_problem().train)
    one = check(line_problem()).fingerprint
    assert check(line_problem(train=(x, y))).fingerprint == one
    assert check(line_problem(train=(x, torch.from_numpy(y)))).fingerprint == one
    locked, backwards = x.copy(), np.ascontiguousarray(x[::-1])[::-1]
    locked.setflags(write=False)
    assert check(line_problem(train=(locked, y))).fingerprint == one
    assert check(line_problem(train=[backwards, y])).fingerprint == one
    assert len(next(iter(line_problem(train=x).batches(0, 0)))) == 1


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
    with pytest.raises(es.UsageError, match=r"shape \(3,\) for 20 examples"):
        check(problem)
