"""What strangers bring trains as in a loop of plain PyTorch, in this process and in workers."""

import copy
import warnings

import pytest
import torch
from small import blobs_problem, line_problem
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import DataLoader, TensorDataset

import etascope as es
from etascope.randomness import seed_everything, undisturbed

CPU, STEPS, LR, SEED = torch.device("cpu"), 12, 0.05, 0
draws = torch.Generator().manual_seed(0)
x = torch.randn(330, 8, generator=draws)
y = x[:, :3].argmax(1)
other = x @ torch.randn(8, 8, generator=draws)


def batches(problem):
    """The batches of the first steps of a seed, with nothing of etascope around them."""
    epoch, number = 0, 0
    while True:
        for batch in problem.batches(SEED, epoch):
            seed_everything(CPU, SEED, "step", number)
            yield batch
            number += 1
        epoch += 1


def plainly_trained(problem, make, make_optimizer):
    """The losses of a loop as anyone writes it, and the model."""
    with undisturbed(CPU):
        seed_everything(CPU, SEED, "init")
        model = make()
        optimizer, losses = make_optimizer(model, LR), []
        for _, batch in zip(range(STEPS), batches(problem), strict=False):
            optimizer.zero_grad()
            loss = problem.loss(model, batch)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses, model.eval()


def plainly_evaluated(problem, model, valid):
    with torch.no_grad():
        found = [float(problem.loss(model, batch)) for batch in valid]
    return sum(found) / len(found)


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def swept(problem, tmp_path, engines=("serial", "processes"), **options):
    """The trial in this process and in a worker, which are the same."""
    options = {"steps": STEPS, "optimizer": sgd, "rungs": (5,), **options}
    one, *others = (
        es.sweep(problem, [LR], engine=engine, out=tmp_path / engine, **options).trials[0]
        for engine in engines
    )
    assert one.failure is None
    for other in others:
        assert one.loss.tolist() == other.loss.tolist()
        assert one.evaluations == other.evaluations
    return one


def assert_plain(problem, make, tmp_path, valid=None, make_optimizer=sgd, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        losses, model = plainly_trained(problem, make, make_optimizer)
        history = swept(problem, tmp_path, optimizer=make_optimizer, **options)
    assert history.loss.tolist() == losses
    if valid is not None:
        expected = plainly_evaluated(problem, model, valid)
        assert history.evaluation("valid").loss == pytest.approx(expected, rel=1e-5)
    return history


# Batches --------------------------------------------------------------------------------------


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(8, 16)

    def forward(self, u, v):
        return nn.functional.normalize(self.a(u)) @ nn.functional.normalize(self.b(v)).T / 0.1


def test_a_contrastive_loss_is_judged_on_whole_batches(tmp_path):
    def loss(model, batch):
        return cross_entropy(model(*batch), torch.arange(len(batch[0])))

    def loader(first, last, size):
        rows = TensorDataset(x[first:last], other[first:last])
        return DataLoader(rows, batch_size=size, drop_last=True)

    valid = loader(300, 325, 12)
    problem = es.Problem(Towers, loss, train=loader(0, 300, 50), valid=valid)
    history = assert_plain(problem, Towers, tmp_path, valid)
    assert history.evaluation("valid").examples == 24
    assert len(history.evaluation("valid").batch_losses) == 2


def test_a_contrastive_loss_on_tensors_is_judged_on_batches_of_the_batch_size(tmp_path):
    def loss(model, batch):
        return cross_entropy(model(*batch), torch.arange(len(batch[0])))

    data = (x[:300], other[:300]), (x[300:], other[300:])
    history = swept(es.Problem(Towers, loss, *data, batch_size=15), tmp_path, ("serial",))
    assert history.evaluation("valid").examples == 30
    assert len(history.evaluation("valid").batch_losses) == 2


class Graphs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, graphs):
        sums = torch.zeros(len(graphs["y"]), 16)
        return self.b(sums.index_add(0, graphs["owner"], torch.relu(self.a(graphs["x"]))))


def collate_graphs(rows):
    owner = torch.cat([torch.full((len(nodes),), i) for i, (nodes, _) in enumerate(rows)])
    nodes, labels = [n for n, _ in rows], [label for _, label in rows]
    return {"x": torch.cat(nodes), "owner": owner, "y": torch.tensor(labels)}


def test_graphs_are_counted_as_graphs(tmp_path):
    sizes = torch.randint(3, 9, (150,), generator=draws).tolist()
    rows = [(nodes := torch.randn(n, 4, generator=draws), int(nodes.mean() > 0)) for n in sizes]
    valid = DataLoader(rows[100:], batch_size=10, collate_fn=collate_graphs)
    problem = es.Problem(
        Graphs,
        lambda m, b: cross_entropy(m(b), b["y"]),
        train=rows[:100],
        valid=valid,
        metric=lambda m, b: m(b).argmax(1) == b["y"],
        collate=collate_graphs,
        batch_size=20,
    )
    history = assert_plain(problem, Graphs, tmp_path, valid)
    evaluation = history.evaluation("valid")
    assert evaluation.examples == 50
    assert evaluation.correct == round(evaluation.metric * 50)


class Reader(nn.Module):
    """Reads sequences of any length, packed or padded."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(3, 8), nn.Linear(8, 2)

    def forward(self, sequences):
        return self.head(self.gru(sequences)[1][-1])


def collate_packed(rows):
    packed = pack_sequence([s for s, _ in rows], enforce_sorted=False)
    return packed, torch.tensor([label for _, label in rows])


def collate_padded(rows):
    return pad_sequence([s for s, _ in rows]), torch.tensor([label for _, label in rows])


@pytest.mark.parametrize("collate", [collate_packed, collate_padded])
def test_sequences_first_and_of_any_length_are_counted_as_sequences(tmp_path, collate):
    lengths = torch.randint(2, 9, (90,), generator=draws).tolist()
    rows = [(s := torch.randn(n, 3, generator=draws), int(s[:, 0].sum() > 0)) for n in lengths]
    valid = DataLoader(rows[60:], batch_size=8, drop_last=True, collate_fn=collate)
    problem = es.Problem(
        Reader,
        lambda m, b: cross_entropy(m(b[0]), b[1]),
        train=DataLoader(rows[:60], batch_size=6, collate_fn=collate),
        valid=valid,
        metric=lambda m, b: m(b[0]).argmax(1) == b[1],
    )
    history = assert_plain(problem, Reader, tmp_path, valid)
    assert history.evaluation("valid").examples == 24


class Fixed(nn.Module):
    """A recurrent network whose first hidden state is a buffer for five sequences."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.RNN(8, 6, batch_first=True), nn.Linear(6, 3)
        self.register_buffer("hidden", torch.zeros(1, 5, 6))

    def forward(self, inputs):
        return self.head(self.rnn(inputs[:, None], self.hidden)[0][:, -1])


def test_a_network_of_a_fixed_batch_size_trains_on_a_loader_that_drops_the_last(tmp_path):
    valid = DataLoader(TensorDataset(x[:33], y[:33]), batch_size=5, drop_last=True)
    problem = es.Problem(
        Fixed,
        lambda m, b: cross_entropy(m(b[0]), b[1]),
        train=(x[33:], y[33:]),
        valid=valid,
        batch_size=5,
    )
    history = assert_plain(problem, Fixed, tmp_path, valid)
    assert history.evaluation("valid").examples == 30


def test_batches_of_a_function_are_counted_by_what_the_user_says(tmp_path):
    def function(seed, epoch):
        rows = torch.Generator().manual_seed(1000 * seed + epoch)
        for _ in range(4):
            pick = torch.randint(0, 300, (6,), generator=rows)
            yield x[pick].T, y[pick]  # features first

    def make():
        return nn.Linear(8, 3)

    problem = es.Problem(
        make,
        lambda m, b: cross_entropy(m(b[0].T), b[1]),
        train=function,
        valid=function,
        metric=lambda m, b: m(b[0].T).argmax(1) == b[1],
        examples=lambda b: len(b[1]),
    )
    history = assert_plain(problem, make, tmp_path, list(function(0, 0)))
    assert history.evaluation("valid").examples == 24


# Models and optimizers ------------------------------------------------------------------------


def old_norm(norm):
    def make():
        return nn.Sequential(norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 3))

    return make


def classes(make, **changes):
    settings = {
        "loss": lambda m, b: cross_entropy(m(b[0]), b[1]),
        "train": (x[:250], y[:250]),
        "valid": (x[250:], y[250:]),
        "batch_size": 10,
    }
    return es.Problem(make, **{**settings, **changes})


class Locked(nn.Linear):
    """A layer that deep copies refuse, with arguments of its own."""

    def __init__(self, width, *, classes):
        super().__init__(width, classes)
        self.scale = lambda: self.weight.abs().mean()

    def forward(self, inputs):
        return super().forward(inputs) / self.scale()

    def __deepcopy__(self, memo):
        raise TypeError("this layer cannot be copied")


class ComplexNet(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.a, self.b = nn.Linear(8, 6, dtype=dtype), nn.Linear(6, 3, dtype=dtype)
        self.dtype = dtype

    def forward(self, inputs):
        return self.b(torch.tanh(self.a(inputs.to(self.dtype)))).abs().float()


MODELS = {
    "weight norm": old_norm(nn.utils.weight_norm),
    "spectral norm": old_norm(nn.utils.spectral_norm),
    "parametrized": old_norm(nn.utils.parametrizations.weight_norm),
    "no copies": lambda: Locked(8, classes=3),
    "complex64": lambda: ComplexNet(torch.complex64),
    "complex128": lambda: ComplexNet(torch.complex128),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_models_train_bit_for_bit_as_in_a_plain_loop(tmp_path, make):
    workers = make in (MODELS["weight norm"], MODELS["complex128"])
    engines = ("serial", "processes") if workers else ("serial",)
    assert_plain(classes(make), make, tmp_path, engines=engines)


def test_an_existing_module_that_autograd_has_been_through_is_trained_from_where_it_is(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        given = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 3))
    given(x).sum().backward()
    before = {name: t.clone() for name, t in given.state_dict().items()}
    history = swept(classes(given), tmp_path)
    assert all(torch.equal(t, before[name]) for name, t in given.state_dict().items())
    with torch.no_grad():  # the first loss is that of the module as it was given
        batch = next(classes(given).batches(SEED, 0))
        assert history.loss[0] == pytest.approx(float(cross_entropy(given(batch[0]), batch[1])))


class Lookahead(torch.optim.Optimizer):
    """An optimizer around another one, which has no constructor's state and copies badly."""

    def __init__(self, inner, every=3):
        self.inner, self.every, self.taken = inner, every, 0
        self.param_groups, self.defaults = inner.param_groups, inner.defaults
        self.slow = [[p.detach().clone() for p in g["params"]] for g in self.param_groups]

    def __deepcopy__(self, memo):
        raise TypeError("an optimizer around another cannot be copied")

    @property
    def state(self):
        return self.inner.state

    def zero_grad(self):
        self.inner.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step()
        self.taken += 1
        if self.taken % self.every:
            return
        for group, slow in zip(self.param_groups, self.slow, strict=True):
            for parameter, kept in zip(group["params"], slow, strict=True):
                kept.add_(parameter - kept, alpha=0.5)
                parameter.copy_(kept)

    def state_dict(self):
        return {"inner": self.inner.state_dict(), "slow": self.slow, "taken": self.taken}

    def load_state_dict(self, state):
        self.inner.load_state_dict(state["inner"])
        self.slow, self.taken = state["slow"], state["taken"]


def test_an_optimizer_around_an_optimizer_trains_and_is_paused(tmp_path):
    def lookahead(model, lr):
        return Lookahead(sgd(model, lr))

    def make():
        return nn.Linear(8, 3)

    whole = assert_plain(classes(make), make, tmp_path, make_optimizer=lookahead)
    out = tmp_path / "paused"
    es.sweep(classes(make), {LR: 5}, steps=STEPS, optimizer=lookahead, rungs=(5,), out=out)
    study = es.sweep(classes(make), [LR], steps=STEPS, optimizer=lookahead, rungs=(5,), out=out)
    assert study.trials[0].loss.tolist() == whole.loss.tolist()


# Sparse gradients -----------------------------------------------------------------------------


def words():
    return nn.Sequential(nn.EmbeddingBag(40, 6, sparse=True), nn.Linear(6, 3, bias=False))


def words_problem(make=words):
    ids = torch.randint(0, 40, (300, 5), generator=torch.Generator().manual_seed(3))
    data = (ids[:250], ids[:250].sum(1) % 3), (ids[250:], ids[250:].sum(1) % 3)
    return es.Problem(make, lambda m, b: cross_entropy(m(b[0]), b[1]), *data, batch_size=10)


class Both(torch.optim.Optimizer):
    """SparseAdam for embeddings and Adam for the rest, as one."""

    def __init__(self, model, lr):
        self.parts = (
            torch.optim.SparseAdam(list(model[0].parameters()), lr=lr),
            torch.optim.Adam(model[1].parameters(), lr=lr),
        )
        super().__init__(model.parameters(), {"lr": lr})

    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def state_dict(self):
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state):
        for part, kept in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(kept)


def plain_sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr)


@pytest.mark.parametrize("make_optimizer", [plain_sgd, sgd, Both])
def test_sparse_gradients_train_as_in_a_plain_loop(tmp_path, make_optimizer):
    engines = ("serial", "processes") if make_optimizer is sgd else ("serial",)
    assert_plain(words_problem(), words, tmp_path, make_optimizer=make_optimizer, engines=engines)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optimizer": "adam"}, "Adam takes dense gradients only"),
        ({"optimizer": "adamw"}, "optimizer AdamW, in its first step, raised .*gradients are spar"),
        ({"optimizer": "rmsprop"}, "optimizer RMSprop, in its first step, raised"),
        ({"optimizer": "sgd", "weight_decay": 0.1}, "optimizer SGD, in its first step, raised"),
        ({"optimizer": "sgd", "clip": 1.0}, r"clipping of gradients raised .* leave clip out"),
        (
            {"optimizer": lambda m, lr: torch.optim.SparseAdam(list(m.parameters()), lr=lr)},
            "optimizer SparseAdam, in its first step, raised RuntimeError: SparseAdam does not",
        ),
    ],
)
def test_what_cannot_step_on_sparse_gradients_is_named_at_the_door(tmp_path, options, told):
    with pytest.raises(es.UsageError, match=told):
        es.sweep(words_problem(), [LR], steps=5, out=tmp_path, **options)
    assert not list(tmp_path.iterdir())


# Problems that own their step -----------------------------------------------------------------


def newton_state(lr):
    model = nn.Linear(8, 3)
    return {"model": model, "optimizer": torch.optim.LBFGS(model.parameters(), lr=lr, max_iter=4)}


def newton_loss(state, batch):
    return cross_entropy(state["model"](batch[0]), batch[1])


def newton_step(state, batch):
    def closure():
        state["optimizer"].zero_grad()
        value = newton_loss(state, batch)
        value.backward()
        return value

    return state["optimizer"].step(closure)


def test_lbfgs_in_a_step_of_its_own_trains_as_in_a_plain_loop(tmp_path):
    data = {"train": (x[:250], y[:250]), "valid": (x[250:], y[250:]), "batch_size": 50}
    problem = es.Problem.from_step(newton_state, newton_step, newton_loss, **data)
    with undisturbed(CPU):
        seed_everything(CPU, SEED, "init")
        state = newton_state(LR)
        losses = [
            float(newton_step(state, batch).detach())
            for _, batch in zip(range(STEPS), batches(problem), strict=False)
        ]
    history = swept(problem, tmp_path, optimizer="adam")
    assert history.loss.tolist() == losses
    with torch.no_grad():
        expected = float(newton_loss(state, (x[250:], y[250:])))
    assert history.evaluation("valid").loss == pytest.approx(expected, rel=1e-5)


def test_a_state_of_many_parts_is_paused_and_goes_on(tmp_path):
    """Two networks, two optimizers, a schedule, an average of weights and a scaler."""

    def make_state(lr):
        body, head = nn.Linear(8, 16), nn.Sequential(nn.ReLU(), nn.Linear(16, 3))
        first = torch.optim.SGD(body.parameters(), lr=lr, momentum=0.9)
        second = torch.optim.Adam(head.parameters(), lr=lr)
        return {
            "body": body,
            "head": head,
            "average": torch.optim.swa_utils.AveragedModel(body),
            "copy": copy.deepcopy(head),
            "first": first,
            "second": second,
            "schedule": torch.optim.lr_scheduler.CosineAnnealingLR(first, STEPS),
            "scaler": torch.amp.GradScaler("cpu", init_scale=8.0),
        }

    def evaluate(state, batch):
        return cross_entropy(state["head"](state["average"](batch[0])), batch[1])

    def step(state, batch):
        loss = cross_entropy(state["head"](state["body"](batch[0])), batch[1])
        for name in ("first", "second"):
            state[name].zero_grad()
        state["scaler"].scale(loss).backward()
        for name in ("first", "second"):
            state["scaler"].step(state[name])
        state["scaler"].update()
        state["schedule"].step()
        state["average"].update_parameters(state["body"])
        return loss

    data = {"train": (x[:250], y[:250]), "valid": (x[250:], y[250:]), "batch_size": 10}
    problem = es.Problem.from_step(make_state, step, evaluate, **data)
    whole = swept(problem, tmp_path, ("serial",), optimizer="adam")
    out = tmp_path / "paused"
    es.sweep(problem, {LR: 5}, steps=STEPS, rungs=(5,), out=out)
    study = es.sweep(problem, [LR], steps=STEPS, rungs=(5,), out=out)
    assert study.trials[0].loss.tolist() == whole.loss.tolist()
    assert study.trials[0].evaluations[-1] == whole.evaluations[-1]


# What a state holds ---------------------------------------------------------------------------


def test_a_sparse_buffer_is_carried(tmp_path):
    class Spread(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(8, 3)
            self.register_buffer("links", (torch.eye(8) + torch.eye(8).roll(1, 0)).to_sparse())

        def forward(self, inputs):
            return self.body((self.links @ inputs.T).T)

    assert_plain(classes(Spread), Spread, tmp_path, engines=("serial",))


def test_what_cannot_be_saved_is_refused_before_anything_is_trained(tmp_path):
    class Notes(torch.optim.SGD):
        def state_dict(self):
            return {**super().state_dict(), "notes": object()}

    def notes(model, lr):
        return Notes(model.parameters(), lr=lr)

    with pytest.raises(es.UsageError, match="keeps a object in its state, which cannot be saved"):
        es.sweep(line_problem(), [LR], steps=5, optimizer=notes, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_optimizer_that_takes_no_step_without_gradients_has_a_schedule_too(tmp_path):
    class Naive(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.sub_(group["lr"] * parameter.grad)

    def naive(model, lr):
        return Naive(model.parameters(), lr)

    options = {"steps": 6, "schedule": "cosine"}
    ours = es.sweep(blobs_problem(), [LR], optimizer=naive, out=tmp_path / "a", **options)
    sgds = es.sweep(blobs_problem(), [LR], optimizer="sgd", out=tmp_path / "b", **options)
    assert ours.trials[0].loss.tolist() == pytest.approx(sgds.trials[0].loss.tolist())
