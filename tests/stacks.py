"""Problems in float64 and comparisons, for the tests of the stacked engine."""

import numpy as np
import torch
from small import blobs_problem, gather
from torch import nn

from etascope.engines.serial import SerialEngine
from etascope.engines.stacked import StackedEngine
from etascope.records import merge
from etascope.state import unpack

RATES = [0.001, 0.03, 0.3]
GENTLE = [0.001, 0.003, 0.02]  # where rounding is not amplified within 20 steps


def momentum(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def adam(model, lr):
    return torch.optim.Adam(model.parameters(), lr=lr)


def two_groups(model, lr):
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "lr": lr / 10}], lr=lr
    )


def normalized_net():
    """Without a bias before batch norm: its gradient is rounding, which Adam makes steps of."""
    return nn.Sequential(
        nn.Linear(2, 16, bias=False),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(16, 3),
    )


def plain_net():
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def doubled(problem_of=blobs_problem, module=normalized_net, **changes):
    """A problem in float64, where agreement can be told from chance."""
    given = problem_of()

    def tensors(split):
        return tuple(t.double() if t.is_floating_point() else t for t in getattr(given, split))

    held_out = {"test": tensors("test")} if given.test is not None else {}
    return problem_of(
        **{
            "model": lambda: module().double(),
            "train": tensors("train"),
            "valid": tensors("valid"),
            **held_out,
            **changes,
        }
    )


def image_net():
    return nn.Sequential(
        nn.Unflatten(1, (2, 1, 1)),
        nn.Upsample(scale_factor=6),
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Dropout2d(0.2),
        nn.InstanceNorm2d(6),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def both(problem, plan, work):
    """Bursts and states of the stacked and of the serial engine, and what the first says."""
    with StackedEngine(problem, plan) as engine, SerialEngine(problem, plan) as oracle:
        return gather(engine, work), gather(oracle, work), engine.about


def assert_near(ours, theirs, target, rtol=1e-9):
    assert set(ours) == set(theirs)
    for trial in ours:
        a, b = (merge(trial, target, bursts[trial]) for bursts in (ours, theirs))
        np.testing.assert_allclose(a.loss, b.loss, rtol=rtol, err_msg=str(trial))
        np.testing.assert_allclose(a.probe_metric, b.probe_metric, rtol=rtol)
        assert [(e.step, e.split) for e in a.evaluations] == [
            (e.step, e.split) for e in b.evaluations
        ]
        np.testing.assert_allclose(
            [e.loss for e in a.evaluations], [e.loss for e in b.evaluations], rtol=rtol
        )
        assert a.failure == b.failure


def assert_same_state(ours, theirs, rtol=1e-9):
    ours, theirs = unpack(ours), unpack(theirs)
    assert (ours.step, ours.epoch, ours.position) == (theirs.step, theirs.epoch, theirs.position)
    for name, tensor in theirs.model.items():
        torch.testing.assert_close(ours.model[name], tensor, rtol=rtol, atol=1e-12)
    for number, kept in theirs.optimizer["state"].items():
        for name, tensor in kept.items():
            torch.testing.assert_close(
                ours.optimizer["state"][number][name], tensor, rtol=rtol, atol=1e-12
            )
