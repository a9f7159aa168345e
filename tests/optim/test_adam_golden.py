"""Adam against paths recorded from TensorFlow's own kernel (`provenance` in the file says how).

Axis order: theta0 [32], grads [200, 32], each path [200, 32], the parameters after each step.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from etascope.optim.adam import Adam
from etascope.optim.reference import adam_init, adam_update

GOLDEN = Path(__file__).parents[1] / "golden" / "adam_tensorflow.npz"
LIMITS = {"float32": 5e-6, "float64": 1e-12}
CASES = [
    (nesterov, dtype, lr, eps)
    for nesterov in (0, 1)
    for dtype in LIMITS
    for lr in (0.001, 0.5)
    for eps in (1e-08, 0.001, 0.1)
]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN, allow_pickle=False) as file:
        return dict(file)


def worst(path: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest deviation of a step, relative to the largest parameter then."""
    gap = np.abs(path.astype(np.float64) - wanted).max(axis=1)
    return float((gap / np.abs(wanted).max(axis=1)).max())


def key(nesterov: int, dtype: str, lr: float, eps: float) -> str:
    return f"theta/nesterov={nesterov}/{dtype}/lr={lr}/eps={eps}"


def test_every_recorded_path_is_compared(golden: dict[str, np.ndarray]) -> None:
    recorded = {name for name in golden if name.startswith("theta/")}
    assert recorded == {key(*case) for case in CASES}
    assert all(golden[name].shape == (200, 32) for name in recorded)


@pytest.mark.parametrize(("nesterov", "dtype", "lr", "eps"), CASES)
def test_the_optimizer_takes_the_path_of_tensorflow(
    golden: dict[str, np.ndarray], nesterov: int, dtype: str, lr: float, eps: float
) -> None:
    wanted = golden[key(nesterov, dtype, lr, eps)]
    assert wanted.dtype == dtype
    p = Parameter(torch.from_numpy(golden["theta0"].astype(dtype)))
    optimizer = Adam([p], lr, eps=eps, nesterov=bool(nesterov))
    path = []
    for grad in golden["grads"].astype(dtype):
        p.grad = torch.from_numpy(grad)
        optimizer.step()
        path.append(p.detach().numpy().copy())
    assert worst(np.stack(path), wanted) <= LIMITS[dtype]


@pytest.mark.parametrize(
    ("nesterov", "dtype", "lr", "eps"), [case for case in CASES if case[1] == "float64"]
)
def test_the_reference_takes_it_too(
    golden: dict[str, np.ndarray], nesterov: int, dtype: str, lr: float, eps: float
) -> None:
    wanted = golden[key(nesterov, dtype, lr, eps)]
    theta, state, path = golden["theta0"], adam_init(golden["theta0"]), []
    for grad in golden["grads"]:
        theta, state = adam_update(theta, grad, state, lr=lr, eps=eps, nesterov=bool(nesterov))
        path.append(theta)
    assert worst(np.stack(path), wanted) <= LIMITS[dtype]


def test_the_limits_tell_eps_and_nesterov_apart(golden: dict[str, np.ndarray]) -> None:
    """Torch's place of eps, and torch's NAdam, are thousands of limits away."""
    for nesterov, make in [(0, torch.optim.Adam), (1, torch.optim.NAdam)]:
        p = Parameter(torch.from_numpy(golden["theta0"].copy()))
        optimizer = make([p], lr=0.5, eps=0.1)
        path = []
        for grad in golden["grads"]:
            p.grad = torch.from_numpy(grad)
            optimizer.step()
            path.append(p.detach().numpy().copy())
        assert worst(np.stack(path), golden[key(nesterov, "float64", 0.5, 0.1)]) > 1e-3
