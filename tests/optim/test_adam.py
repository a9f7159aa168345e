"""The laws of Adam: its formula, one count of t, states that travel, and layouts in memory."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from etascope.errors import UsageError
from etascope.optim.adam import Adam
from etascope.optim.reference import adam_init, adam_update, effective_lr

BOTH = pytest.mark.parametrize("nesterov", [False, True])


def gradients(steps: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, *shape, generator=generator, dtype=torch.float64)


def take(optimizer: torch.optim.Optimizer, p: Tensor, grad: Tensor | None) -> None:
    p.grad = grad
    optimizer.step()


@BOTH
@given(
    lr=st.floats(1e-5, 10),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.9), (0.5, 0.5), (0.99, 0.99)]),
    eps=st.sampled_from([1e-12, 1e-8, 1e-3, 1.0]),
    missing=st.sets(st.integers(0, 19)),
)
@settings(deadline=None, max_examples=60)
def test_paths_are_those_of_the_reference_also_where_gradients_are_missing(
    nesterov: bool, lr: float, betas: tuple[float, float], eps: float, missing: set[int]
) -> None:
    start, grads = gradients(1, 3, 4, seed=1)[0], gradients(20, 3, 4)
    p, other = Parameter(start.clone()), Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = Adam([p, other], lr, betas, eps, nesterov=nesterov)
    theta, state, farthest = start.numpy(), adam_init(start.numpy()), 0.0
    for k, grad in enumerate(grads):
        other.grad = torch.ones_like(other)
        take(optimizer, p, None if k in missing else grad)
        if k in missing:  # the count goes on, nothing else does
            state = state._replace(t=state.t + 1)
            continue
        options = {"lr": lr, "betas": betas, "eps": eps, "nesterov": nesterov}
        theta, state = adam_update(theta, grad.numpy(), state, **options)
        farthest = max(farthest, np.abs(theta).max())
        np.testing.assert_allclose(p.detach().numpy(), theta, rtol=0, atol=1e-11 * farthest)
    assert optimizer.param_groups[0]["t"] == 20
    assert all(entry["step"].item() == 20 for entry in optimizer.state.values())


@given(
    g=st.floats(1e-150, 1e150) | st.floats(-1e150, -1e-150),
    eps=st.floats(1e-12, 1.0),
    lr=st.floats(1e-6, 10),
)
@settings(deadline=None)
def test_the_first_step_shows_where_eps_stands(g: float, eps: float, lr: float) -> None:
    p = Parameter(torch.zeros(1, dtype=torch.float64))
    take(Adam([p], lr, eps=eps), p, torch.tensor([g], dtype=torch.float64))
    wanted = -lr * g / (abs(g) + eps / np.sqrt(0.001))
    assert p.item() == pytest.approx(wanted, rel=1e-9)


def test_without_eps_it_is_torch_adam_and_with_it_31_times_its_eps_at_first() -> None:
    grads = gradients(50, 7)
    ours, theirs = Parameter(torch.zeros(7).double()), Parameter(torch.zeros(7).double())
    a, b = Adam([ours], 0.1, eps=1e-30), torch.optim.Adam([theirs], 0.1, eps=1e-30, fused=True)
    for grad in grads:
        take(a, ours, grad)
        take(b, theirs, grad)
    assert torch.equal(ours, theirs)
    ours, theirs = Parameter(torch.zeros(7).double()), Parameter(torch.zeros(7).double())
    take(Adam([ours], 0.1, eps=0.1), ours, grads[0])
    take(torch.optim.Adam([theirs], 0.1, eps=0.1 / 0.001**0.5), theirs, grads[0])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@BOTH
@pytest.mark.parametrize("scale", [2.0, 2.0**-20, 2.0**30])
def test_the_scale_of_the_loss_leaves_the_path_alone(nesterov: bool, scale: float) -> None:
    paths = []
    for factor in (1.0, scale):
        p = Parameter(torch.ones(5, dtype=torch.float64))
        optimizer = Adam([p], 0.1, eps=1e-30, nesterov=nesterov)
        for grad in gradients(30, 5):
            take(optimizer, p, factor * grad)
        paths.append(p.detach())
    torch.testing.assert_close(paths[0], paths[1], rtol=1e-13, atol=0)


@BOTH
def test_weight_decay_is_a_gradient_of_its_own(nesterov: bool) -> None:
    a, b = Parameter(torch.ones(6).double()), Parameter(torch.ones(6).double())
    decayed = Adam([a], 0.1, nesterov=nesterov, weight_decay=0.3)
    by_hand = Adam([b], 0.1, nesterov=nesterov)
    for grad in gradients(20, 6):
        kept = grad.clone()
        take(decayed, a, grad)
        assert torch.equal(grad, kept)
        take(by_hand, b, grad + 0.3 * b.detach())
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3)
    )


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> Tensor:
    for k in steps:
        x = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(k))
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@BOTH
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_state_continues_bit_for_bit(nesterov: bool, stop: int) -> None:
    model = network()
    optimizer = Adam(model.parameters(), 0.01, nesterov=nesterov, weight_decay=0.1)
    train(model, optimizer, range(stop))
    reloaded = copy.deepcopy(model)
    again = Adam(reloaded.parameters(), 99.0)
    again.load_state_dict(optimizer.state_dict())
    cloned, twin = copy.deepcopy((model, optimizer))
    wanted = train(model, optimizer, range(stop, 9))
    assert torch.equal(train(reloaded, again, range(stop, 9)), wanted)  # nothing is shared
    assert torch.equal(train(cloned, twin, range(stop, 9)), wanted)
    layout = again.state_dict()["state"][0]
    assert set(layout) == {"step", "exp_avg", "exp_avg_sq"}
    assert again.param_groups[0]["t"] == 9


@BOTH
def test_channels_last_takes_the_same_path(nesterov: bool) -> None:
    plain, last = network(), network().to(memory_format=torch.channels_last)
    a = Adam(plain.parameters(), 0.01, nesterov=nesterov)
    b = Adam(last.parameters(), 0.01, nesterov=nesterov)
    torch.testing.assert_close(train(plain, a, range(5)), train(last, b, range(5)))
    for p, state in b.state.items():
        assert state["exp_avg"].stride() == p.stride()


def layouts() -> Iterator[tuple[str, Tensor]]:
    yield "channels_last", torch.zeros(4, 3, 5, 5).to(memory_format=torch.channels_last)
    yield "transposed", torch.zeros(6, 5).t()
    yield "with gaps", torch.zeros(6, 10)[:, ::2]
    yield "empty", torch.zeros(0, 3)
    yield "a number", torch.zeros(())


@BOTH
@pytest.mark.parametrize(("name", "start"), list(layouts()))
def test_any_order_in_memory(name: str, start: Tensor, nesterov: bool) -> None:
    """Gradients and loaded moments lie contiguous; the model may turn over after a step."""
    flat, odd = Parameter(start.clone().contiguous()), Parameter(start)
    a, b = Adam([flat], 0.1, nesterov=nesterov), Adam([odd], 0.1, nesterov=nesterov)
    for k, grad in enumerate(gradients(4, *start.shape).float()):
        take(a, flat, grad.contiguous())
        take(b, odd, grad.contiguous())
        if k == 1:
            b.load_state_dict(a.state_dict())
            assert b.state[odd]["exp_avg"].stride() == torch.empty_like(odd).stride()
        if k == 2 and name == "channels_last":
            odd.data = odd.data.contiguous()
    torch.testing.assert_close(odd.detach(), flat.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters(dtype: torch.dtype) -> None:
    for nesterov, length in [(False, 1.0), (True, 1.9)]:
        p = Parameter(torch.ones(4, dtype=dtype))
        take(Adam([p], 0.125, nesterov=nesterov), p, torch.full((4,), 2.0, dtype=dtype))
        torch.testing.assert_close(p.detach(), torch.full((4,), 1 - 0.125 * length, dtype=dtype))


def test_groups_have_their_own_options_and_one_count() -> None:
    first, late = Parameter(torch.zeros(3).double()), Parameter(torch.zeros(3).double())
    optimizer = Adam([{"params": [first], "lr": 0.5, "nesterov": True}], 0.1, eps=0.01)
    grads = gradients(6, 3)
    for grad in grads[:3]:
        take(optimizer, first, grad)
    optimizer.add_param_group({"params": late, "betas": (0.8, 0.99)})
    theta, state = np.zeros(3), adam_init(np.zeros(3))._replace(t=3)
    for grad in grads[3:]:
        take(optimizer, late, grad)
        options = {"lr": 0.1, "betas": (0.8, 0.99), "eps": 0.01}
        theta, state = adam_update(theta, grad.numpy(), state, **options)
    np.testing.assert_allclose(late.detach().numpy(), theta, rtol=1e-12)
    assert [group["t"] for group in optimizer.param_groups] == [6, 6]
    assert optimizer.state[first]["step"].item() == 6


@BOTH
def test_lr_as_a_tensor_and_schedulers(nesterov: bool) -> None:
    ends = []
    for lr in (0.1, torch.tensor(0.1, dtype=torch.float64)):
        p = Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = Adam([p], lr, nesterov=nesterov)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        lengths = []
        for _ in range(4):
            before = p.detach().clone()
            take(optimizer, p, torch.ones_like(p))
            scheduler.step()
            lengths.append((before - p.detach())[0].item())
        # under a constant gradient a step is as long as the rate is then, or m / g looks ahead
        ahead = 0.9 + 0.1 / (1 - 0.9 ** np.arange(1, 5)) if nesterov else 1.0
        np.testing.assert_allclose(lengths, 0.1 * 0.5 ** np.arange(4) * ahead, rtol=1e-6)
        ends.append(p.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=0)


@BOTH
def test_a_closure_runs_once_with_gradients_on(nesterov: bool) -> None:
    p, losses = Parameter(torch.tensor([2.0])), []
    optimizer = Adam([p], 0.5, nesterov=nesterov)

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses.append((p**2).sum())
        losses[-1].backward()
        return losses[-1]

    with torch.no_grad():
        assert optimizer.step(closure) is losses[0]
    assert len(losses) == 1
    assert p.item() == pytest.approx(2 - 0.5 * (1.9 if nesterov else 1.0))


def test_effective_lr_is_the_length_of_a_step_of_unit_m_over_root_v() -> None:
    curve = effective_lr(0.5, np.arange(1, 30_000))
    assert curve[0] == pytest.approx(0.5 * 0.001**0.5 / 0.1)
    assert curve.argmin() == 11
    assert curve[-1] == pytest.approx(0.5)
    assert effective_lr(1.0, 7).shape == ()
    with pytest.raises(UsageError, match="counts from 1"):
        effective_lr(1.0, [1, 0])
    with pytest.raises(UsageError, match="differ in shape"):
        adam_update(np.zeros(3), np.zeros(2), adam_init(np.zeros(3)))
