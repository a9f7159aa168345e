"""Adam as a torch optimizer: hooks, scalers, foreign states, and every error at the door."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from etascope.errors import UsageError
from etascope.optim.adam import Adam

HOOKS = """
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from etascope.optim.adam import Adam
p = torch.nn.Parameter(torch.ones(2))
if {plain}:
    torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
optimizer, calls = Adam([p], 0.5, nesterov={nesterov}), []
optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
optimizer.register_step_post_hook(lambda *_: calls.append("post"))
register_optimizer_step_post_hook(lambda *_: calls.append("all"))
p.grad = torch.ones(2)
optimizer.step()
assert calls == ["pre", "post", "all"], calls
assert (p < 0.6).all(), p
"""


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_hooks_run_once_whatever_was_made_before(plain: bool, nesterov: bool) -> None:
    code = HOOKS.format(plain=plain, nesterov=nesterov)
    subprocess.run([sys.executable, "-c", code], check=True)


def stepped(optimizer: Any, *params: Parameter) -> Any:
    for _ in range(3):
        for p in params:
            p.grad = torch.full_like(p, 2.0)
        optimizer.step()
    return optimizer


def test_states_pass_to_and_from_torch_adam() -> None:
    p, q = Parameter(torch.ones(3)), Parameter(torch.ones(2))
    theirs = stepped(torch.optim.Adam([p, q], lr=0.5), p)
    stepped(theirs, p, q)
    assert theirs.state[q]["step"].item() == 3
    ours = Adam([p, q])
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["t"] == 6
    assert ours.state[q]["step"].item() == 6
    assert ours.param_groups[0]["lr"] == 0.5
    assert torch.equal(ours.state[p]["exp_avg"], theirs.state[p]["exp_avg"])
    stepped(ours, p, q)
    back = torch.optim.Adam([p, q])
    back.load_state_dict(ours.state_dict())
    stepped(back, p, q)
    assert back.state[p]["step"].item() == 12


def test_a_gradient_scaler_skips_a_step_and_its_count() -> None:
    p = Parameter(torch.ones(2))
    optimizer = Adam([p], 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor, t, value in [(float("inf"), 0, 1.0), (3.0, 1, 0.5)]:
        optimizer.zero_grad()
        scaler.scale((factor * p).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.param_groups[0]["t"] == t
        assert p.tolist() == [value, value]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"lr": torch.tensor(-0.5)}, "lr is -0.5"),
        ({"lr": torch.ones(2)}, "lr has 2 elements"),
        ({"betas": (1.0, 0.999)}, "betas"),
        ({"betas": (0.9, -0.1)}, "betas"),
        ({"betas": (0.9, float("nan"))}, "betas"),
        ({"betas": (0.9,)}, "betas"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"amsgrad": True}, "no amsgrad"),
        ({"maximize": True}, "no maximize"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], what: str) -> None:
    if not {"amsgrad", "maximize"} & set(options):
        with pytest.raises(UsageError, match=what):
            Adam([Parameter(torch.ones(2))], **options)
    optimizer = Adam([Parameter(torch.ones(2))])
    with pytest.raises(UsageError, match=what):
        optimizer.add_param_group({"params": [Parameter(torch.ones(2))], **options})
    assert len(optimizer.param_groups) == 1


def test_complex_parameters_are_refused_and_not_kept() -> None:
    bad = Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(UsageError, match="complex"):
        Adam([bad])
    optimizer = Adam([Parameter(torch.ones(2))])
    with pytest.raises(UsageError, match="complex"):
        optimizer.add_param_group({"params": bad})
    assert len(optimizer.param_groups) == 1


def test_a_sparse_gradient_is_refused_before_anything_moves() -> None:
    dense, table = Parameter(torch.ones(2)), torch.nn.Embedding(4, 2, sparse=True)
    optimizer = Adam([dense, *table.parameters()])
    (dense.sum() + table(torch.tensor([1])).sum()).backward()
    with pytest.raises(UsageError, match="sparse"):
        optimizer.step()
    assert dense.tolist() == [1.0, 1.0]
    assert optimizer.param_groups[0]["t"] == 0
    assert not optimizer.state


def test_a_cuda_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    p = Parameter(torch.ones(2))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(UsageError, match="CUDA graph"):
        stepped(Adam([p]), p)
    assert p.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_plain_direction_runs_in_the_fused_kernel(nesterov: bool) -> None:
    dense, gaps = Parameter(torch.ones(4, 4)), Parameter(torch.ones(4, 4)[:, ::2])
    for p, fused in [(dense, not nesterov), (gaps, False)]:
        optimizer = stepped(Adam([p], nesterov=nesterov), p)
        with torch.profiler.profile() as profile:
            optimizer.step()
        assert ("aten::_fused_adam_" in {event.name for event in profile.events()}) == fused


def spoil(state: dict[str, Any], name: str) -> None:
    if name == "shape":
        state["state"][0]["exp_avg"] = torch.ones(2)
    elif name == "missing":
        del state["state"][0]["exp_avg_sq"]
    elif name in ("negative", "broken", "nan", "endless"):
        values = {"negative": -1, "broken": 1.5, "nan": float("nan"), "endless": float("inf")}
        state["param_groups"][0]["t"] = values[name]
    elif name == "eps":
        state["param_groups"][0]["eps"] = -1.0


@pytest.mark.parametrize(
    "name", ["shape", "missing", "negative", "broken", "nan", "endless", "eps"]
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(name: str) -> None:
    p = Parameter(torch.ones(3))
    state = stepped(Adam([p]), p).state_dict()
    spoil(state, name)
    other = Adam([p])
    with pytest.raises(UsageError):
        other.load_state_dict(state)
    assert not other.state
    assert other.param_groups[0]["t"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("gaps", [False, True])
def test_half_precision_takes_zero_and_tiny_gradients(
    dtype: torch.dtype, nesterov: bool, gaps: bool
) -> None:
    p = Parameter(torch.ones(3, 2, dtype=dtype)[:, :1] if gaps else torch.ones(3, 1, dtype=dtype))
    optimizer = Adam([p], 0.125, nesterov=nesterov)
    p.grad = torch.tensor([[0.0], [1e-5], [-1e-5]], dtype=dtype)
    optimizer.step()
    length = 0.125 * (1.9 if nesterov else 1.0)
    wanted = torch.tensor([[1.0], [1 - length], [1 + length]], dtype=dtype)
    torch.testing.assert_close(p.detach(), wanted, rtol=2e-2, atol=0)
