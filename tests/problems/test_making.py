"""Every trial has a model of its own, and the user's objects stay as they are."""

import gc
import itertools
import pickle

import pytest
import torch
from small import blobs_problem, line_problem
from torch import nn

import etascope as es
from etascope.problems.making import Maker

backbone = nn.Linear(2, 4)
weight = torch.ones(4, 2)
table = torch.zeros(3)
activation = nn.ReLU()
notes: list[int] = []


def headed(body):
    return nn.Sequential(body, nn.ReLU(), nn.Linear(4, 3))


def with_shared_parameter():
    body = nn.Linear(2, 4)
    body.weight = nn.Parameter(weight)
    return headed(body)


def with_shared_buffer():
    model = headed(nn.Linear(2, 4))
    model.register_buffer("table", table)
    return model


class Noted(nn.Module):
    """Writes down its calls in a list that all share."""

    def __init__(self):
        super().__init__()
        self.body, self.notes = nn.Linear(2, 3), notes

    def forward(self, x):
        self.notes.append(len(x))
        return self.body(x)


def make_with(factory):
    maker = Maker(factory, "the model factory")
    return lambda: maker.make(lambda: torch.manual_seed(0))


def test_a_fresh_model_is_used_as_it_was_made():
    made = []

    def factory():
        made.append(nn.Linear(1, 1))
        return made[-1]

    make = make_with(factory)
    assert make() is made[-1]
    assert make() is made[-1]
    assert len(made) == 3  # the first one was only looked at
    assert torch.equal(made[1].weight, made[2].weight)


SHARING = {
    "the module": lambda: backbone,
    "a part": lambda: headed(backbone),
    "memory": with_shared_parameter,
    "a buffer": with_shared_buffer,
    "a part without weights": lambda: nn.Sequential(nn.Linear(2, 3), activation),
}


@pytest.mark.parametrize("factory", SHARING.values(), ids=SHARING)
def test_what_a_factory_hands_out_again_is_copied(factory):
    make = make_with(factory)
    one, two = make(), make()
    before = [backbone.weight.clone(), weight.clone(), table.clone()]
    own = {id(m) for m in one.modules()} | {t.data_ptr() for t in one.parameters()}
    assert not own & {id(m) for m in (*two.modules(), backbone, activation)}
    assert not own & {t.data_ptr() for t in (*two.parameters(), backbone.weight, weight)}
    with torch.no_grad():
        for tensor in (*one.parameters(), *one.buffers()):
            tensor.add_(1)
    after = [backbone.weight, weight, table]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_a_shared_list_is_copied_without_the_model():
    make = make_with(Noted)
    one = make()
    one(torch.zeros(2, 2))
    assert one.notes == [2]
    assert notes == []
    assert make().notes == []


def test_a_factory_that_begins_to_share_is_told():
    pool = [nn.Linear(1, 1) for _ in range(3)]
    make = make_with(itertools.cycle(pool).__next__)
    kept = [make() for _ in range(2)]
    with pytest.raises(es.UsageError, match=r"the model factory hands out .* again, which a train"):
        [make() for _ in range(3)]
    assert len(kept) == 2


def test_memory_that_another_model_gave_back_is_not_taken_for_shared():
    def moved():
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3))

    make, kept = make_with(moved), []
    for _ in range(20):
        kept.append(make().to(memory_format=torch.channels_last))
    assert len(kept) == 20


def test_a_worker_finds_out_for_itself():
    maker = Maker(blobs_problem, "the model factory")
    maker._known = True
    again = pickle.loads(pickle.dumps(maker))
    assert not again._known


@pytest.mark.parametrize("engine", ["serial", "processes"])
@pytest.mark.parametrize("factory", SHARING.values(), ids=SHARING)
def test_trials_do_not_see_one_another_whatever_the_factory_shares(tmp_path, factory, engine):
    def whole():
        made = factory()
        return made if made is not backbone else headed(made)

    before = {n: t.clone() for n, t in backbone.state_dict().items()}
    problem = blobs_problem(model=whole)
    study = es.sweep(problem, [0.1, 0.01], steps=10, engine=engine, out=tmp_path / "both")
    alone = es.sweep(blobs_problem(model=whole), [0.01], steps=10, out=tmp_path / "one")
    ours = next(h for h in study.trials if h.trial.lr == 0.01)
    assert ours.loss.tolist() == alone.trials[0].loss.tolist()
    assert all(torch.equal(t, before[n]) for n, t in backbone.state_dict().items())


def owned(make_state):
    def evaluate(state, batch):
        return (state["model"](batch[0]) - batch[1]).square().mean()

    def step(state, batch):
        def closure():
            state["optimizer"].zero_grad()
            loss = evaluate(state, batch)
            loss.backward()
            return loss

        return state["optimizer"].step(closure)

    plain = line_problem()
    parts = {"train": plain.train, "valid": plain.valid, "batch_size": 8}
    return es.Problem.from_step(make_state, step, evaluate, **parts)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS])
def test_a_state_that_is_handed_out_again_is_copied_with_its_optimizer(tmp_path, kind):
    model = nn.Linear(1, 1)
    before = model.weight.clone()
    optimizer = kind(model.parameters(), lr=0.1)

    def make_state(lr):
        optimizer.param_groups[0]["lr"] = lr
        return {"model": model, "optimizer": optimizer}

    def anew(lr):
        same = nn.Linear(1, 1)
        same.load_state_dict(model.state_dict())
        return {"model": same, "optimizer": kind(same.parameters(), lr=lr)}

    study = es.sweep(owned(make_state), [0.1, 0.01], steps=10, out=tmp_path / "same")
    assert torch.equal(model.weight, before)
    assert not optimizer.state
    assert all(p.grad is None for p in model.parameters())
    expected = es.sweep(owned(anew), [0.1, 0.01], steps=10, out=tmp_path / "anew")
    for ours, theirs in zip(study.trials, expected.trials, strict=True):
        assert ours.loss.tolist() == theirs.loss.tolist()


def test_a_state_with_a_schedule_that_is_handed_out_again_is_refused(tmp_path):
    model = nn.Linear(1, 1)

    def make_state(lr):
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"model": model, "optimizer": optimizer, "schedule": schedule}

    with pytest.raises(es.UsageError, match=r"make_state hands out .* again .* build it anew"):
        es.sweep(owned(make_state), [0.1], steps=10, out=tmp_path)


def test_the_collector_of_cycles_may_run_at_any_moment(tmp_path):
    """What makes models keeps weak references, which go while it is looked at."""

    def make_state(lr):
        model = nn.Linear(1, 1)
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=lr)}

    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        studies = [
            es.sweep(owned(make_state), [0.1, 0.01], steps=10, out=tmp_path / str(k))
            for k in range(3)
        ]
    finally:
        gc.set_threshold(*before)
    assert [h.failure for study in studies for h in study.trials] == [None] * 6
