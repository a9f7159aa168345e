"""A trial is the same however it is paused, evaluated or repeated, whatever keeps state in it."""

import itertools
import random
import time

import hidden
import numpy as np
import pytest
import torch
from hidden import CARRIED, SEEDED, Base, Points
from small import blobs_problem, gather, told, work_of
from torch import nn
from torch.nn.functional import cross_entropy

import etascope as es
from etascope.engines.processes import ProcessesEngine
from etascope.engines.serial import SerialEngine
from etascope.engines.stackable import obstacle
from etascope.plan import Plan
from etascope.records import TrialId
from etascope.rehearsal import rehearse
from etascope.state import pack, unpack
from etascope.trial import Trial

BLOBS = blobs_problem().train


def plan_of(steps=9, **options):
    return Plan(steps=steps, optimizer=options.pop("optimizer", "adam"), rungs=(steps,), **options)


def train(problem, stops=(9,), *, lr=0.01, **options):
    """Losses, last evaluations and weights of a trial that is paused and evaluated at `stops`."""
    plan = plan_of(**options)
    state, losses = None, []
    for stop in (*stops, 9) if stops[-1] != 9 else stops:
        trial = Trial(problem, plan, TrialId(lr, 0), state)
        burst = trial.advance(stop)
        assert burst.failure is None, burst.failure
        losses += burst.loss
        state = unpack(pack(trial.state()))
    weights = {name: tensor.tolist() for name, tensor in state.model.items()}
    return losses, burst.evaluations, weights


def let_in(problem, **options):
    """Pass the door; raises UsageError where it is closed."""
    rehearse(problem, plan_of(**options), TrialId(0.01, 0))


# What a model keeps ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CARRIED)
def test_what_a_model_keeps_goes_on_after_a_pause_and_an_evaluation_leaves_no_trace(kind):
    problem = blobs_problem(model=CARRIED[kind])
    let_in(problem)
    whole = train(problem)
    assert train(problem, (1, 2, 3, 7)) == whole
    assert train(problem, probe_every=1) == whole
    bare = blobs_problem(model=CARRIED[kind], metric=None)
    assert train(bare, (4,))[::2] == whole[::2]


class Lookahead(torch.optim.Optimizer):
    """Pulls the weights of another optimizer's back every third step; counts in an attribute."""

    def __init__(self, base):
        self.base, self.count = base, 0
        self.slow = [p.detach().clone() for p in base.param_groups[0]["params"]]
        super().__init__(base.param_groups[0]["params"], {"lr": 0.0})

    def step(self, closure=None):
        self.base.step()
        self.count += 1
        if self.count % 3 == 0:
            for p, slow in zip(self.base.param_groups[0]["params"], self.slow, strict=True):
                p.data.copy_(slow.lerp_(p.detach(), 0.5))


def test_what_an_optimizer_keeps_beside_its_state_dict_goes_on_after_a_pause():
    def make(model, lr):
        return Lookahead(torch.optim.Adam(model.parameters(), lr=lr))

    let_in(blobs_problem(), optimizer=make)
    whole = train(blobs_problem(), optimizer=make)
    assert train(blobs_problem(), (2, 4, 5), optimizer=make) == whole


def test_what_the_parts_of_a_state_keep_goes_on_after_a_pause():
    class Average:
        """A moving average whose state_dict forgets how often it was updated."""

        def __init__(self, model):
            self.model, self.updates = model, 0
            self.mean = [p.detach().clone() for p in model.parameters()]

        def update(self):
            self.updates += 1
            for mean, p in zip(self.mean, self.model.parameters(), strict=True):
                mean.lerp_(p.detach(), 1 / (1 + self.updates))

        def state_dict(self):
            return {"mean": self.mean}

        def load_state_dict(self, state):
            self.mean = list(state["mean"])

    def make_state(lr):
        model = hidden.Counting()
        sgd = torch.optim.SGD(model.parameters(), lr=lr)
        return {"model": model, "sgd": sgd, "average": Average(model)}

    def evaluate(state, batch):
        return cross_entropy(state["model"](batch[0]), batch[1])

    def step(state, batch):
        loss = evaluate(state, batch)
        state["sgd"].zero_grad()
        loss.backward()
        state["sgd"].step()
        state["average"].update()
        loss = loss + sum(mean.sum() for mean in state["average"].mean)
        return loss.detach()

    problem = es.Problem.from_step(make_state, step, evaluate, train=BLOBS, valid=BLOBS)
    from etascope.problems.owned import own_step

    let_in(problem, optimizer=own_step)
    whole = train(problem, optimizer=own_step)
    assert train(problem, (2, 5), optimizer=own_step) == whole


def test_objects_that_trials_share_are_left_alone():
    history = []

    class Logging(Base):
        def __init__(self):
            super().__init__()
            self.history = history

        def forward(self, x):
            self.history.append(len(x))
            return self.linear(x)

    problem = blobs_problem(model=lambda: Logging())  # noqa: PLW0108 - what it names is looked at
    let_in(problem)
    train(problem, (3, 6))
    assert isinstance(history, list)


# Healthy code ---------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """Puts a layer of 4 features in the middle of a classifier of the blobs."""

    def __init__(self, layer, call=lambda layer, x: layer(x)):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(2, 4), layer, nn.Linear(4, 3)
        self.call = call

    def forward(self, x):
        return self.last(self.call(self.layer, self.first(x)))


class CachedMask(nn.Module):
    """Works its mask out once and keeps it, and keeps its last attention to look at."""

    mask = attention = None

    def forward(self, x):
        if self.mask is None or self.mask.shape[0] != x.shape[1]:
            self.mask = torch.tril(torch.ones(x.shape[1], x.shape[1]))
        self.attention = torch.softmax(x[:, :, None] * x[:, None] + self.mask.log(), -1)
        self.posterior = torch.distributions.Normal(x, 1.0)
        return (self.attention @ x[:, :, None])[..., 0]


def first(layer, x):
    return layer(x[:, None])[0][:, 0]


HEALTHY = {
    "BatchNorm": lambda: Wrapped(nn.BatchNorm1d(4)),
    "cumulative BatchNorm": lambda: Wrapped(nn.BatchNorm1d(4, momentum=None)),
    "GroupNorm": lambda: Wrapped(nn.GroupNorm(2, 4)),
    "LSTM": lambda: Wrapped(nn.LSTM(4, 4, batch_first=True), first),
    "attention": lambda: Wrapped(
        nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True),
        lambda layer, x: layer(x[:, None], x[:, None], x[:, None])[0][:, 0],
    ),
    "Transformer": lambda: Wrapped(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
        lambda layer, x: layer(x[:, None])[:, 0],
    ),
    "Embedding": lambda: Wrapped(
        nn.Embedding(3, 4, max_norm=1.0), lambda layer, x: x + layer((x[:, 0] > 0).long())
    ),
    "weight_norm": lambda: Wrapped(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
    "spectral_norm": lambda: Wrapped(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))),
    "old spectral_norm": lambda: Wrapped(nn.utils.spectral_norm(nn.Linear(4, 4))),
    "Dropout and RReLU": lambda: Wrapped(nn.Sequential(nn.Dropout(0.2), nn.RReLU())),
    "cached mask": lambda: Wrapped(CachedMask()),
    "frozen": lambda: Wrapped(nn.BatchNorm1d(4).eval()),
}


@pytest.mark.parametrize("kind", HEALTHY)
@pytest.mark.filterwarnings("ignore")
def test_healthy_modules_pass_the_door_and_pause(kind):
    problem = blobs_problem(model=HEALTHY[kind])
    let_in(problem)
    assert train(problem, (2, 5)) == train(problem)


def test_a_cache_and_a_log_that_make_no_difference_are_not_refused():
    seen = []

    def loss(model, batch):
        value = cross_entropy(model(batch[0]), batch[1])
        seen.append(float(value.detach()))
        return value

    let_in(blobs_problem(train=Points(BLOBS, hidden.Caching()), loss=loss))
    assert seen


def test_a_model_that_is_not_paused_keeps_nothing_beside_its_tensors():
    trial = Trial(blobs_problem(), plan_of(), TrialId(0.01, 0))
    trial.advance(5)
    kept = trial.state().attributes
    assert not [path for path in kept if path.startswith("model")]


# Generators of the user's own -----------------------------------------------------------------


@pytest.mark.parametrize("kind", SEEDED)
def test_generators_of_a_dataset_give_every_rate_the_same_data_in_any_order(kind):
    def records(*rates):
        problem = blobs_problem(train=Points(BLOBS, SEEDED[kind]()))
        let_in(problem)
        return {lr: train(problem, lr=lr) for lr in rates}

    forth, back = records(0.01, 0.1), records(0.1, 0.01)
    assert forth == back
    problem = blobs_problem(train=Points(BLOBS, SEEDED[kind]()))
    assert train(problem, (2, 5)) == forth[0.01]
    assert len(set(forth[0.01][0])) == 9


def test_two_generators_do_not_draw_the_same():
    mine, other = (np.random.RandomState(0) for _ in range(2))
    seen = []

    def noise(index):
        seen.append((mine.normal(), other.normal()))
        return torch.zeros(2)

    train(blobs_problem(train=Points(BLOBS, noise)))
    assert all(a != b for a, b in seen)


def test_generators_are_given_back_as_they_were():
    owned = [np.random.default_rng(1), random.Random(1), torch.Generator().manual_seed(1)]
    problem = blobs_problem(train=Points(BLOBS, lambda i: torch.zeros(2) * owned[1].random()))
    before = [owned[0].bit_generator.state, owned[1].getstate(), owned[2].get_state().tolist()]
    let_in(problem)
    train(problem)
    after = [owned[0].bit_generator.state, owned[1].getstate(), owned[2].get_state().tolist()]
    assert before == after


def test_workers_and_this_process_agree_on_carried_and_seeded_state():
    noise = SEEDED["Random"]()
    problem = blobs_problem(model=CARRIED["Nested"], train=Points(BLOBS, noise))
    let_in(problem)
    plan, work = Plan(steps=9, optimizer="adam", rungs=(2, 5)), work_of([0.01, 0.1], 9)
    with SerialEngine(problem, plan) as oracle, ProcessesEngine(problem, plan, 2) as engine:
        ours, theirs = gather(engine, work)[0], gather(oracle, work)[0]
    assert {t: told(b, 9) for t, b in ours.items()} == {t: told(b, 9) for t, b in theirs.items()}


# What is refused ------------------------------------------------------------------------------


def counting_loss():
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += model.training
        return cross_entropy(model(batch[0]), batch[1]) * (1 + calls / 100)

    return {"loss": loss}


CALLS = 0


def global_loss():
    def loss(model, batch):
        global CALLS  # noqa: PLW0603
        CALLS += model.training
        return cross_entropy(model(batch[0]), batch[1]) * (1 + CALLS / 100)

    return {"loss": loss}


def iterator_in_the_model():
    class Model(Base):
        def __init__(self):
            super().__init__()
            self.scales = iter([k / 10 for k in range(1, 1000)])

        def forward(self, x):
            return self.linear(x) * next(self.scales)

    return {"model": Model}


def counter_of_a_class():
    class Model(Base):
        calls = 0

        def forward(self, x):
            Model.calls += self.training
            return self.linear(x) * (1 + Model.calls / 100)

    return {"model": Model}


def counting_collate():
    calls = itertools.count()

    def collate(rows):
        points, labels = zip(*rows, strict=True)
        return torch.stack(points) * (1 + next(calls) / 10), torch.stack(labels)

    return {"train": Points(BLOBS, lambda index: torch.zeros(2)), "collate": collate}


def unseeded_noise():
    noise = lambda index: torch.tensor(np.random.default_rng().normal(size=2)).float()  # noqa: E731
    return {"train": Points(BLOBS, noise)}


REFUSED = {
    "a variable of the loss": (counting_loss, "training loss.*`loss.calls`"),
    "a global": (global_loss, r"training loss.*`[\w.]*test_hidden_state\.CALLS`"),
    "a class": (counter_of_a_class, r"training loss.*`.*Model\.calls`"),
    "an iterator": (iterator_in_the_model, "evaluations.*`model.scales`"),
    "data": (lambda: {"train": Points(BLOBS, hidden.Alternating())}, "`train.dataset.noise.calls`"),
    "memory": (lambda: {"train": Points(BLOBS, hidden.Remembering())}, "`train.*noise.cache`"),
    "collate": (counting_collate, "`collate.calls`"),
    "entropy": (unseeded_noise, "train gives other batches.*was not found.*made anew"),
    "the clock": (
        lambda: {"metric": lambda m, b: time.perf_counter()},
        "two evaluations of the same weights differ.*was not found",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_state_that_cannot_be_carried_is_refused_by_name(kind, tmp_path):
    make, message = REFUSED[kind]
    with pytest.raises(es.UsageError, match=message) as refusal:
        let_in(blobs_problem(**make()))
    assert len(str(refusal.value)) < 500
    with pytest.raises(es.UsageError):
        es.sweep(blobs_problem(**make()), [0.01], steps=5, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_range_test_is_refused_alike():
    with pytest.raises(es.UsageError, match=r"loss\.calls"):
        es.range_test(blobs_problem(**counting_loss()), steps=5, seeds=1)


@pytest.mark.parametrize("kind", ["Counting", "Nested", "Recurrent", "Hooked"])
def test_models_with_attributes_that_change_are_not_stacked(kind):
    told = obstacle(blobs_problem(model=CARRIED[kind]), plan_of())
    assert told is not None
    assert "which is no buffer" in told
