import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import blobs_problem, line_problem
from torch import nn
from torch.utils.data import DataLoader, Dataset

import etascope as es
from etascope.checkpoints import Checkpoints
from etascope.plan import Plan
from etascope.records import TrialId, merge
from etascope.state import pack, unpack
from etascope.trial import Trial

OPTIMIZERS = {
    "sgd": lambda m, lr: torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9),
    "adam": lambda m, lr: torch.optim.Adam(m.parameters(), lr=lr),
    "adagrad": lambda m, lr: torch.optim.Adagrad(m.parameters(), lr=lr),
    "groups": lambda m, lr: torch.optim.AdamW(
        [
            {"params": [p for p in m.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in m.parameters() if p.ndim < 2], "lr": lr / 10},
        ],
        lr=lr,
    ),
}


def train(problem, plan, *, lr=0.01, seed=0, stops=None, through=None):
    """The records of a trial, paused and restored at each of `stops`."""
    trial_id = TrialId(lr, seed)
    bursts, state = [], None
    for stop in sorted({*(stops or ()), *plan.rungs}):
        trial = Trial(problem, plan, trial_id, state)
        bursts.append(trial.advance(stop))
        if bursts[-1].failure is not None:
            break
        state = trial.state()
        if through is not None:
            through.save(trial_id, stop, pack(state))
            state = unpack(through.load(trial_id, stop))
    return merge(trial_id, plan.steps, bursts), state


def same(ours, theirs):
    assert ours.loss.tolist() == theirs.loss.tolist()
    assert ours.probe_metric.tolist() == theirs.probe_metric.tolist()
    last = [max(h.evaluations, key=lambda e: (e.step, e.split)) for h in (ours, theirs)]
    assert last[0] == last[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle", "step", "linear-warmup"])
def test_a_trial_paused_anywhere_is_the_one_never_paused(tmp_path, optimizer, schedule):
    plan = Plan(steps=23, optimizer=OPTIMIZERS[optimizer], schedule=schedule, rungs=(23,))
    whole, _ = train(blobs_problem(), plan)
    parts, _ = train(blobs_problem(), plan, stops=(1, 7, 10, 11), through=Checkpoints(tmp_path))
    same(whole, parts)


@settings(max_examples=10)
@given(stops=st.sets(st.integers(1, 29), max_size=4), accumulate=st.integers(1, 3))
def test_where_it_pauses_never_matters(stops, accumulate):
    plan = Plan(steps=30, optimizer=OPTIMIZERS["adam"], accumulate=accumulate, rungs=(30,), clip=1)
    whole, _ = train(blobs_problem(), plan)
    parts, _ = train(blobs_problem(), plan, stops=stops)
    same(whole, parts)


def test_seeds_differ_and_rates_share_data_weights_and_masks():
    """At a rate so small that nothing moves, two rates see the same losses; two seeds do not."""
    plan = Plan(steps=20, optimizer=OPTIMIZERS["sgd"])
    first, _ = train(blobs_problem(), plan, lr=1e-12)
    second, _ = train(blobs_problem(), plan, lr=2e-12)
    np.testing.assert_allclose(first.loss, second.loss, rtol=1e-6)
    other, _ = train(blobs_problem(), plan, lr=1e-12, seed=1)
    assert abs(first.loss - other.loss).max() > 1e-3


def test_what_ran_before_or_beside_never_matters():
    plan = Plan(steps=12, optimizer=OPTIMIZERS["adam"])
    alone, _ = train(blobs_problem(), plan)
    torch.manual_seed(5)
    random.seed(5)
    a = Trial(blobs_problem(), plan, TrialId(0.01, 0))
    b = Trial(blobs_problem(), plan, TrialId(0.3, 1))
    bursts = []
    for stop in plan.rungs:
        bursts.append(a.advance(stop))
        b.advance(stop)
        torch.randn(7)
    same(alone, merge(TrialId(0.01, 0), 12, bursts))


def test_evaluating_and_probing_more_often_never_shifts_the_training():
    often = Plan(steps=20, optimizer=OPTIMIZERS["adam"], probe_every=1, rungs=tuple(range(1, 20)))
    seldom = Plan(steps=20, optimizer=OPTIMIZERS["adam"], probe_every=20, rungs=(20,))
    assert train(blobs_problem(), often)[0].loss.tolist() == (
        train(blobs_problem(), seldom)[0].loss.tolist()
    )


class Noisy(Dataset):
    """Augments with the global generators of torch, numpy and random."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        jitter = torch.randn(2) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return torch.full((2,), float(index % 3)) + 0.1 * jitter, index % 3


def stream(seed, epoch):
    """Batches of a length nobody knows, drawn from the global generator."""
    for _ in range(3 + epoch % 2):
        labels = torch.randint(0, 3, (10,))
        yield torch.randn(10, 2) + labels[:, None], labels


@pytest.mark.parametrize("data", [Noisy(), DataLoader(Noisy(), batch_size=7, shuffle=True), stream])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_kind_of_data_resumes_bit_for_bit(data, accumulate):
    plan = Plan(steps=17, optimizer=OPTIMIZERS["sgd"], accumulate=accumulate)
    problem = blobs_problem(train=data)
    whole, _ = train(problem, plan)
    parts, _ = train(problem, plan, stops=(1, 2, 5, 8, 13))
    same(whole, parts)
    assert len(set(whole.loss.tolist())) == 17


def test_an_epoch_visits_each_example_at_most_once_and_epochs_differ():
    seen = []

    def collate(items):
        seen.append(sorted(int(i) for i in items))
        return torch.tensor(items).float()[:, None], torch.zeros(len(items), 1)

    problem = line_problem(train=list(range(10)), collate=collate, batch_size=5)
    train(problem, Plan(steps=4, optimizer=OPTIMIZERS["sgd"], rungs=(4,)))
    first, second = seen[0] + seen[1], seen[2] + seen[3]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_a_trial_that_becomes_non_finite_ends_with_cause_step_and_layer():
    plan = Plan(steps=100, optimizer=OPTIMIZERS["sgd"])
    history, _ = train(blobs_problem(), plan, lr=1e30)
    failure = history.failure
    assert failure is not None
    assert failure.cause == "non-finite"
    assert failure.step < 100
    assert failure.layer in {"0", "1", "2", "3", "4", "Sequential"}
    assert not np.isfinite(history.loss[-1])
    assert history.status == "failed"
    assert "rate" in failure.remedy


def test_weights_that_become_non_finite_with_the_last_update_are_noticed():
    class Breaks(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("nan"))

    plan = Plan(steps=1, optimizer=lambda m, lr: Breaks(m.parameters(), lr=lr))
    history, _ = train(blobs_problem(), plan)
    assert history.failure is not None
    assert history.failure.layer == "0"
    assert history.failure.step == 1


@pytest.mark.parametrize("raised", [RuntimeError, SystemExit])
def test_an_exception_in_user_code_is_a_failure_of_that_trial_only(raised):
    calls = []

    def loss(model, batch):
        calls.extend([None] * model.training)
        if len(calls) == 6:
            raise raised("the cat pulled the plug")
        return model(batch[0]).square().mean()

    history, _ = train(line_problem(loss=loss), Plan(steps=10, optimizer=OPTIMIZERS["sgd"]))
    assert history.failure is not None
    assert history.failure.cause == "exception"
    assert "the cat pulled the plug" in history.failure.message


def test_buffers_and_batch_statistics_go_on_after_a_pause():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 1)
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def forward(self, x):
            if self.training:
                self.seen += 1
            return self.linear(x) * (1 + 0.01 * self.seen)

    plan = Plan(steps=9, optimizer=OPTIMIZERS["adam"])
    whole, _ = train(line_problem(model=Counts), plan)
    parts, _ = train(line_problem(model=Counts), plan, stops=(2, 4))
    same(whole, parts)


def test_tied_and_channels_last_weights_are_saved_and_restored(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.again = self.conv

        def forward(self, x):
            return self.again(self.conv(x)).mean((1, 2, 3))

    images = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    problem = line_problem(
        model=Tied, train=(images, images.mean((1, 2, 3))), valid=(images, images.mean((1, 2, 3)))
    )
    plan = Plan(steps=6, optimizer=OPTIMIZERS["adam"])
    whole, _ = train(problem, plan)
    parts, state = train(problem, plan, stops=(2,), through=Checkpoints(tmp_path))
    same(whole, parts)
    assert state is not None
    assert state.model["conv.weight"].is_contiguous(memory_format=torch.channels_last)


def test_an_optimizer_state_that_cannot_be_saved_says_so(tmp_path):
    class Odd(torch.optim.SGD):
        def state_dict(self):
            return {**super().state_dict(), "odd": object()}

    plan = Plan(steps=2, optimizer=lambda m, lr: Odd(m.parameters(), lr=lr))
    with pytest.raises(es.StudyError, match="object"):
        train(line_problem(), plan, through=Checkpoints(tmp_path))


# The user's objects ---------------------------------------------------------------------------


def global_state():
    return (
        random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
    )


@pytest.mark.parametrize("fails", [False, True], ids=["done", "raises"])
def test_nothing_of_the_users_is_changed(tmp_path, fails):
    model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model.eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    calls = []

    def loss(m, batch):
        begun = (tmp_path / "s" / "study.json").exists()  # past the door
        calls.extend([None] * (m.training and begun))
        if fails and len(calls) > 6:
            raise ValueError("no")
        return nn.functional.cross_entropy(m(batch[0]), batch[1])

    loader = DataLoader(Noisy(), batch_size=5, shuffle=True)
    problem = blobs_problem(model=model, loss=loss, train=loader)
    torch.manual_seed(3)
    torch.set_num_threads(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        untouched = global_state()
        es.sweep(problem, [0.1, 0.2], steps=10, optimizer=OPTIMIZERS["adam"], out=tmp_path / "s")
        assert global_state() == untouched
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert "forward" not in vars(model)
    assert not model._forward_hooks
    assert len(list(loader)) == 10


def test_a_factory_that_returns_one_object_again_and_again_gets_copies(tmp_path):
    model = nn.Linear(1, 1)
    before = copy.deepcopy(model.state_dict())
    study = es.sweep(
        line_problem(model=lambda: model),
        [0.1, 0.2],
        steps=10,
        optimizer=OPTIMIZERS["sgd"],
        out=tmp_path / "s",
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    firsts = {history.loss[0] for history in study.trials}
    assert len(firsts) == 1


# Precision, extra state, bad data -------------------------------------------------------------


def test_bfloat16_keeps_float32_weights_and_state_and_gives_another_trial():
    plan = Plan(steps=6, optimizer=OPTIMIZERS["adam"], precision="bfloat16")
    seen = set()

    def loss(m, batch):
        output = m(batch[0])
        seen.add(output.dtype)
        return nn.functional.cross_entropy(output, batch[1])

    problem = blobs_problem(loss=loss)
    assert problem.is_cut("valid")  # both are found out in full precision
    assert problem.is_cut("test")
    seen.clear()
    half, state = train(problem, plan)
    assert seen == {torch.bfloat16}
    tensors = [t for t in state.model.values() if t.is_floating_point()]
    tensors += [v for s in state.optimizer["state"].values() for k, v in s.items() if k != "step"]
    assert {t.dtype for t in tensors} == {torch.float32}
    whole, _ = train(problem, Plan(steps=6, optimizer=OPTIMIZERS["adam"]))
    assert half.loss.tolist() != whole.loss.tolist()
    assert np.allclose(half.loss, whole.loss, rtol=0.05)


def test_a_callers_autocast_does_not_reach_a_float32_trial():
    plan = Plan(steps=4, optimizer=OPTIMIZERS["sgd"])
    plain, _ = train(blobs_problem(), plan)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = train(blobs_problem(), plan)
    same(plain, inside)


class Counting(nn.Module):
    """Keeps a number beside parameters and buffers, and uses it."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(1, 1), 0

    def forward(self, x):
        self.calls += self.training
        return self.linear(x) * (1 + self.calls / 10)

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


def test_the_extra_state_of_modules_goes_on_after_a_pause(tmp_path):
    plan = Plan(steps=6, optimizer=OPTIMIZERS["sgd"], rungs=(6,))
    whole, _ = train(line_problem(model=Counting), plan)
    parts, _ = train(
        line_problem(model=Counting), plan, stops=(2, 3), through=Checkpoints(tmp_path)
    )
    same(whole, parts)


def test_a_batch_that_is_not_finite_is_blamed_on_the_data():
    x, y = line_problem().train
    y = y.clone()
    y[:] = float("nan")
    history, _ = train(line_problem(train=(x, y)), Plan(steps=4, optimizer=OPTIMIZERS["sgd"]))
    assert history.failure.cause == "data"
    assert history.failure.step == 0


def test_bfloat16_steps_use_the_weights_of_their_own_step():
    """Casts that outlive a step would train on the weights that the burst began with."""
    plan = Plan(steps=60, optimizer=OPTIMIZERS["sgd"], rungs=(60,), precision="bfloat16")
    history, _ = train(blobs_problem(), plan, lr=0.1)
    exact, _ = train(blobs_problem(), Plan(steps=60, optimizer=OPTIMIZERS["sgd"]), lr=0.1)
    assert history.loss[-20:].mean() == pytest.approx(exact.loss[-20:].mean(), rel=0.2)
    assert history.evaluation("valid").loss < 0.3
