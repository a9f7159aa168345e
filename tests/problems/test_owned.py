"""A problem that owns its step is trained, paused, searched and refused as any other is."""

import pytest
import torch
from small import gather, line_problem, told
from torch import nn

import etascope as es
from etascope.engines.base import Work
from etascope.engines.serial import SerialEngine
from etascope.plan import Plan
from etascope.problems.owned import own_step
from etascope.records import TrialId


def make_state(lr):
    model = nn.Linear(1, 1)
    return {"model": model, "adam": torch.optim.Adam(model.parameters(), lr=lr)}


def evaluate(state, batch):
    return (state["model"](batch[0]) - batch[1]).square().mean()


def step(state, batch):
    loss = evaluate(state, batch)
    state["adam"].zero_grad()
    loss.backward()
    state["adam"].step()
    return loss


def owned(**changes):
    plain = line_problem()
    parts = {"make_state": make_state, "step": step, "evaluate": evaluate}
    parts |= {name: changes.pop(name) for name in tuple(changes) if name in parts}
    return es.Problem.from_step(
        *parts.values(), train=plain.train, valid=plain.valid, batch_size=8, **changes
    )


def test_it_trains_bit_for_bit_as_the_same_step_written_the_usual_way(tmp_path):
    def adam(model, lr):
        return torch.optim.Adam(model.parameters(), lr=lr)

    one = es.sweep(owned(), [0.01, 0.1], steps=30, seeds=2, out=tmp_path / "one")
    two = es.sweep(
        line_problem(), [0.01, 0.1], steps=30, seeds=2, optimizer=adam, out=tmp_path / "two"
    )
    for ours, theirs in zip(one.trials, two.trials, strict=True):
        assert ours.loss.tolist() == theirs.loss.tolist()
        assert ours.evaluations == theirs.evaluations


def test_paused_it_goes_on_bit_for_bit():
    plan, trial = Plan(steps=20, optimizer=own_step, rungs=(20,)), TrialId(0.05, 3)
    with SerialEngine(owned(), plan) as engine:
        whole, _ = gather(engine, [Work(trial, 20)])
        first, states = gather(engine, [Work(trial, 7)])
        rest, _ = gather(engine, [Work(trial, 20, 7, states[trial])])
    ours = [loss for b in (*first[trial], *rest[trial]) for loss in b.loss]
    assert ours == [loss for b in whole[trial] for loss in b.loss]
    assert told(whole[trial], 20)[2][-1] == rest[trial][-1].evaluations[-1]


@pytest.mark.parametrize("engine", ["processes", "stacked"])
def test_every_engine_trains_it(tmp_path, engine):
    one = es.sweep(owned(), [0.01, 0.1], steps=10, engine="serial", out=tmp_path / "one")
    two = es.sweep(owned(), [0.01, 0.1], steps=10, engine=engine, out=tmp_path / "two")
    assert [h.loss.tolist() for h in one.trials] == [h.loss.tolist() for h in two.trials]


def test_find_answers(tmp_path):
    found = es.find(owned(), steps=40, out=tmp_path)
    assert found.band[0] <= found.lr <= found.band[1]


def test_an_adversary_with_two_optimizers_is_searched(tmp_path):
    """A generator of numbers around 2 and a critic that tells them from real ones."""

    def make(lr):
        critic, maker = nn.Linear(1, 1), nn.Linear(1, 1)
        return {
            "critic": critic,
            "maker": maker,
            "critic_sgd": torch.optim.SGD(critic.parameters(), lr=lr),
            "maker_sgd": torch.optim.SGD(maker.parameters(), lr=lr),
        }

    def distance(state, batch):
        return (state["maker"](torch.zeros_like(batch[0])) - batch[0]).square().mean()

    def play(state, batch):
        real = state["critic"](batch[0])
        made = state["maker"](torch.randn_like(batch[0]))
        state["critic_sgd"].zero_grad()
        loss = nn.functional.softplus(-real).mean()
        loss = loss + nn.functional.softplus(state["critic"](made.detach())).mean()
        loss.backward()
        state["critic_sgd"].step()
        state["maker_sgd"].zero_grad()
        nn.functional.softplus(-state["critic"](made)).mean().backward()
        state["maker_sgd"].step()
        return loss

    numbers = 2 + 0.1 * torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    problem = es.Problem.from_step(
        make, play, distance, train=(numbers[:100],), valid=(numbers[100:],), batch_size=20
    )
    study = es.sweep(problem, [1e-3, 0.3], steps=150, out=tmp_path)
    losses = {h.trial.lr: h.evaluation("valid").loss for h in study.trials}
    assert losses[0.3] < losses[1e-3]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"make_state": lambda lr: [nn.Linear(1, 1)]}, "must return a dict"),
        ({"make_state": lambda lr: {"lr": lr}}, "has no state_dict"),
        ({"make_state": lambda lr: {}}, "no nn.Module"),
        ({"step": lambda state, batch: None}, "step returned NoneType"),
        ({"evaluate": lambda state, batch: "low"}, "evaluate returned str"),
        ({"step": lambda state, batch: 1 / 0}, "raised ZeroDivisionError"),
    ],
)
def test_what_cannot_work_is_one_sentence(tmp_path, changes, told):
    with pytest.raises(es.UsageError, match=told):
        es.sweep(owned(**changes), [0.1], steps=10, out=tmp_path)


def test_settings_of_a_step_that_is_its_own_are_refused(tmp_path):
    with pytest.raises(es.UsageError, match="owns its step"):
        es.sweep(owned(), [0.1], steps=10, clip=1.0, out=tmp_path)
    with pytest.raises(es.UsageError, match="must be a function"):
        owned(step=3)


def fixed_rate(lr):
    model = nn.Linear(1, 1)
    return {"model": model, "adam": torch.optim.Adam(model.parameters(), lr=0.01)}


def absolute_schedule(lr):
    state = make_state(lr)
    cycle = torch.optim.lr_scheduler.OneCycleLR(state["adam"], max_lr=0.01, total_steps=100)
    return {**state, "cycle": cycle}


@pytest.mark.parametrize("made", [fixed_rate, absolute_schedule])
def test_a_state_that_ignores_its_rate_is_refused(tmp_path, made):
    with pytest.raises(es.UsageError, match="make_state ignores its learning rate"):
        es.sweep(owned(make_state=made), [0.1], steps=10, out=tmp_path)


class ByHand:
    """An optimizer that has no groups to look into."""

    def __init__(self, model, lr):
        self.model, self.lr = model, lr

    def zero_grad(self):
        self.model.zero_grad()

    def step(self):
        with torch.no_grad():
            for p in self.model.parameters():
                p.sub_(self.lr * p.grad)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("ignores", [False, True])
def test_where_no_rate_can_be_seen_the_weights_tell(tmp_path, ignores):
    def make(lr):
        model = nn.Linear(1, 1)
        return {"model": model, "adam": ByHand(model, 0.01 if ignores else lr)}

    problem = owned(make_state=make)
    if ignores:
        with pytest.raises(es.UsageError, match="make_state ignores its learning rate"):
            es.sweep(problem, [0.1], steps=10, out=tmp_path)
    else:
        assert es.sweep(problem, [0.1], steps=10, out=tmp_path).trials[0].failure is None


@pytest.mark.filterwarnings("ignore:Seems like .optimizer.step")
def test_a_state_that_warms_up_from_zero_follows_its_rate(tmp_path):
    def make(lr):
        state = make_state(lr)
        rising = torch.optim.lr_scheduler.LambdaLR(state["adam"], lambda t: min(1, t / 5))
        return {**state, "rising": rising}

    def rising_step(state, batch):
        loss = step(state, batch)
        state["rising"].step()
        return loss

    problem = owned(make_state=make, step=rising_step)
    assert es.sweep(problem, [0.1], steps=10, out=tmp_path).trials[0].failure is None
