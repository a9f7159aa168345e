"""The registry: names, defaults, and the rates at which the optimizers really turn unstable."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter

from etascope.errors import UsageError
from etascope.optim.adam import Adam
from etascope.optim.registry import OPTIMIZERS, frozen_threshold, get_optimizer

NAMES = [
    "sgd",
    "sgd-momentum",
    "sgd-nesterov",
    "adam",
    "adam-nesterov",
    "adamw",
    "nadam",
    "radam",
    "adamax",
    "rmsprop",
    "adagrad",
]
UNKNOWN = ["nadam", "radam", "adamax"]


def test_names_in_order() -> None:
    assert list(OPTIMIZERS) == NAMES
    for name, spec in OPTIMIZERS.items():
        assert get_optimizer(name) is spec
        assert spec.name == name
        assert spec.summary
        assert spec.make.__doc__


def test_an_unknown_name_gives_close_ones_and_all() -> None:
    for name, close in [("adm", "adam"), ("SGD_Momentum", "sgd-momentum"), ("rmsprob", "rmsprop")]:
        with pytest.raises(UsageError, match=f"'{name}'; did you mean .*{close}") as caught:
            get_optimizer(name)
        assert all(known in str(caught.value) for known in NAMES)
    with pytest.raises(UsageError, match=r"'zzz'; choose from sgd, "):
        get_optimizer("zzz")


@pytest.mark.parametrize("name", NAMES)
def test_each_takes_any_iterable_and_lowers_a_loss(name: str) -> None:
    p = Parameter(torch.tensor([1.0, -2.0]))
    optimizer = get_optimizer(name).make(iter([p]), 0.01, None)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert optimizer.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_and_its_default(name: str) -> None:
    def decay(value: float | None) -> float:
        made = get_optimizer(name).make([Parameter(torch.ones(1))], 0.1, value)
        return float(made.param_groups[0]["weight_decay"])

    assert decay(None) == (0.01 if name == "adamw" else 0.0)
    assert decay(0.0) == 0.0
    assert decay(0.25) == 0.25


def test_the_two_adams_are_ours() -> None:
    for name, nesterov in [("adam", False), ("adam-nesterov", True)]:
        made = get_optimizer(name).make([Parameter(torch.ones(1))], 0.1, None)
        assert isinstance(made, Adam)
        assert made.param_groups[0]["nesterov"] is nesterov


def growth(name: str, share: float, steps: int) -> float:
    """Return |var| at the end over |var| at the start on `H = 3`, at a share of the threshold."""
    p = Parameter(torch.ones(1, dtype=torch.float64))
    stability = get_optimizer(name).stability
    assert stability is not None
    optimizer = get_optimizer(name).make([p], share * stability / 3, None)
    for _ in range(steps):
        p.grad = 3 * p.detach()
        optimizer.step()
    return abs(p.item())


@pytest.mark.parametrize("name", ["sgd", "sgd-momentum", "sgd-nesterov"])
def test_sgd_diverges_2_percent_above_its_threshold_and_not_below(name: str) -> None:
    assert growth(name, 1.02, 1500) > 1e6
    assert growth(name, 0.98, 1500) < 1e-6


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("adam", "exp_avg_sq"),
        ("adam-nesterov", "exp_avg_sq"),
        ("adamw", "exp_avg_sq"),
        ("rmsprop", "square_avg"),
        ("adagrad", "sum"),
    ],
)
@pytest.mark.parametrize("share", [0.98, 1.02])
def test_a_held_preconditioner_turns_unstable_at_the_threshold(
    name: str, frozen: str, share: float
) -> None:
    """Run the real optimizer late in training with its v put back to P^2 before each step."""
    hessian, root = torch.tensor([0.5, 3.0]).double(), torch.tensor([0.7, 2.0]).double()
    lam = (hessian / root).max().item()
    p = Parameter(torch.full((2,), 1e-9).double())
    stability = get_optimizer(name).stability
    assert stability is not None
    optimizer = get_optimizer(name).make([p], share * stability / lam, 0.0)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    state = optimizer.state[p]
    state["step"].fill_(100_000.0)
    if "t" in optimizer.param_groups[0]:
        optimizer.param_groups[0]["t"] = 100_000
    for _ in range(2000):
        state[frozen].copy_(root**2)
        p.grad = hessian * p.detach()
        if name == "adagrad":
            state[frozen].sub_(p.grad**2)
        decay = {"exp_avg_sq": 0.999, "square_avg": 0.99}.get(frozen)
        if decay:  # what the step will add is taken away before
            state[frozen].sub_((1 - decay) * p.grad**2).div_(decay)
        if p.detach().abs().max() > 1e-2:
            break
        optimizer.step()
    size = p.detach().abs().max().item()
    assert size > 1e-2 if share > 1 else size < 1e-12


@given(beta=st.floats(0, 0.95), mu=st.floats(0, 1))
def test_the_threshold_is_where_the_recursion_leaves_the_unit_circle(
    beta: float, mu: float
) -> None:
    for share in (0.98, 1.02):
        step = share * frozen_threshold(beta, mu)
        # (m, x) -> beta*m + (1-beta)*x, then x - step*(mu*m + (1-mu)*x)
        m_row = np.array([beta, 1 - beta])
        x_row = np.array([0, 1]) - step * (mu * m_row + (1 - mu) * np.array([0, 1]))
        radius = np.abs(np.linalg.eigvals(np.array([m_row, x_row]))).max()
        assert (radius > 1) == (share > 1)


def test_known_thresholds() -> None:
    known = {name: spec.stability for name, spec in OPTIMIZERS.items()}
    assert [name for name, value in known.items() if value is None] == UNKNOWN
    assert known["sgd"] == known["rmsprop"] == known["adagrad"] == 2
    assert known["sgd-momentum"] == pytest.approx(3.8)
    assert known["sgd-momentum"] == pytest.approx(frozen_threshold(0.9, 1) / 10)
    assert known["sgd-nesterov"] == pytest.approx(frozen_threshold(0.9, 0.9) / 10)
    assert known["adam"] == known["adamw"] == pytest.approx(38)
    assert known["adam-nesterov"] == pytest.approx(13.5714, abs=1e-4)
    for name in UNKNOWN:
        assert re.search(
            r"no\s(one\snumber|threshold)\s+is\s+given", get_optimizer(name).make.__doc__
        )
    for beta, mu in [(1.0, 0.5), (-0.1, 0.5), (0.9, 1.1), (0.9, float("nan"))]:
        with pytest.raises(UsageError):
            frozen_threshold(beta, mu)
