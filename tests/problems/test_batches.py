"""Held-out batches are what their owner would see, and everything counts what was fetched."""

from collections import namedtuple

import pytest
import torch
from small import blobs_problem, line_problem
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import etascope as es
from etascope.engines.handover import pickle_problem, unpickle_problem
from etascope.engines.witness import witness_of
from etascope.plan import Plan
from etascope.problems.checks import inspect

ROWS = TensorDataset(torch.arange(32.0)[:, None], 3 * torch.arange(32.0)[:, None])


def firsts(problem, split="valid"):
    """The inputs in each held-out batch."""
    return [tuple(batch[0].flatten().tolist()) for batch in problem.held_out(split)]


def owners(loader):
    return [tuple(batch[0].flatten().tolist()) for batch in loader]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [3, 5, 32, 40])
def test_the_batches_of_a_loader_hold_what_it_would_put_into_each(size, drop_last):
    loader = DataLoader(ROWS, batch_size=size, drop_last=drop_last)
    if drop_last and size > len(ROWS):
        with pytest.raises(es.UsageError, match="valid gives no batch: it drops the last one"):
            line_problem(valid=loader)
        return
    problem = line_problem(valid=loader, test=loader)
    for split in ("valid", "test"):
        assert sorted(firsts(problem, split)) == sorted(owners(loader))
        sizes = [len(batch) for batch in firsts(problem, split)]
        assert sizes == sorted(sizes, reverse=True)  # the smaller one comes last


def test_a_loader_that_shuffles_has_its_examples_shuffled_once():
    problem = line_problem(valid=DataLoader(ROWS, batch_size=8, shuffle=True))
    found = firsts(problem)
    assert found == firsts(problem)
    assert [len(batch) for batch in found] == [8] * 4
    assert sorted(sum(found, ())) == [float(n) for n in range(32)]
    assert any(batch != tuple(sorted(batch)) for batch in found)


def test_a_sorted_loader_gives_rungs_of_every_class():
    labels = torch.arange(200) // 100
    loader = DataLoader(TensorDataset(torch.zeros(200, 2), labels), batch_size=10)
    problem = blobs_problem(valid=loader)
    seen = torch.cat([batch[1] for batch in problem.held_out("valid", 60)])
    assert set(seen.tolist()) == {0, 1}


def test_a_loader_that_goes_its_own_way_is_refused():
    class Doubled(DataLoader):
        def __iter__(self):
            return iter([*super().__iter__()] * 2)

    with pytest.raises(es.UsageError, match="order of its own"):
        line_problem(train=Doubled(ROWS, batch_size=4))


def test_a_dataset_fetches_several_as_a_loader_would_let_it():
    class Several(Dataset):
        def __len__(self):
            return 12

        def __getitems__(self, numbers):
            return [ROWS[n] for n in numbers]

    problem = line_problem(train=Several(), valid=Several(), batch_size=4)
    assert len(next(iter(problem.batches(0, 0)))[0]) == 4


def test_a_named_tuple_of_tensors_gives_batches_of_its_kind():
    Points = namedtuple("Points", "x y")
    data = Points(*ROWS.tensors)
    problem = line_problem(
        train=data, valid=data, loss=lambda m, b: (m(b.x) - b.y).square().mean() / 1000
    )
    inspect(problem, 1000)
    assert type(next(problem.held_out("valid"))) is Points


# Cutting --------------------------------------------------------------------------------------


def sizes(problem):
    return [len(batch[0]) for batch in problem.held_out("valid")]


def pairs(model, batch):
    """A ranking loss, which is log 2 for every batch as long as all outputs are equal."""
    score, y = model(batch[0]).flatten(), batch[1].flatten()
    wins = (y[:, None] > y[None]).float()
    return (nn.functional.softplus(score[None] - score[:, None]) * wins).sum() / wins.sum().clip(1)


def zeroed():
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    return model


def test_small_sets_are_cut_where_the_loss_is_a_mean_over_examples():
    assert sizes(line_problem(batch_size=16)) == [3] * 10 + [2]
    assert sizes(blobs_problem()) == [10] * 10


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": pairs},
        {"loss": pairs, "model": zeroed},
        {"loss": lambda m, b: (m(b[0]) - b[1]).std()},
        {"loss": lambda m, b: (m(b[0]) - b[1]).square().sum()},
        {"loss": lambda m, b: (m(b[0]) - b[1]).square().mean() * torch.rand(())},
        {"metric": lambda m, b: torch.corrcoef(torch.cat([m(b[0]), b[1]], 1).T)[0, 1]},
        {"metric": lambda m, b: m(b[0]).flatten().argsort() == b[1].flatten().argsort()},
        {
            "model": lambda: nn.Sequential(
                nn.BatchNorm1d(1, track_running_stats=False), nn.Linear(1, 1)
            )
        },
    ],
)
def test_batches_are_left_whole_where_a_part_is_another_thing_than_the_batch(changes):
    assert sizes(line_problem(batch_size=16, **changes)) == [16, 16]


@pytest.mark.parametrize(
    "metric",
    [
        lambda m, b: (m(b[0]) - b[1]).abs().mean(),
        lambda m, b: (m(b[0]) - b[1]).abs().flatten(),
        lambda m, b: 0.5,
    ],
)
def test_a_metric_that_is_a_mean_lets_batches_be_cut(metric):
    assert len(sizes(line_problem(batch_size=16, metric=metric))) == 11


def test_cutting_changes_no_number_and_is_decided_without_drawing():
    problem, whole = line_problem(batch_size=16), line_problem(batch_size=16)
    whole.cuts["valid"] = False
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert problem.is_cut("valid")
    assert torch.equal(torch.rand(2), expected)
    model = problem.make_model(0)
    ours, theirs = (p.evaluate(model, "valid", 0) for p in (problem, whole))
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    assert ours.examples == theirs.examples


def test_what_was_decided_goes_with_the_problem_into_a_worker():
    problem = line_problem(batch_size=16)
    problem.cuts["valid"] = False
    again, _ = unpickle_problem(pickle_problem(problem, Plan(steps=3)), witness_of(problem))
    assert again.cuts == {"valid": False}
    assert sizes(again) == [16, 16]


# Counting -------------------------------------------------------------------------------------


def sequences(seed, epoch):
    """Sequence-first batches: [time, batch, feature] and one target for each sequence."""
    draws = torch.Generator().manual_seed(epoch)
    for _ in range(6):
        x = torch.randn(7, 4, 2, generator=draws)
        yield x, x.sum((0, 2))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0][-1]).squeeze(-1)


def recurrent(**changes):
    settings = {
        "model": Recurrent,
        "loss": lambda m, b: (m(b[0]) - b[1]).square().mean(),
        "train": sequences,
        "valid": sequences,
    }
    return es.Problem(**{**settings, **changes})


def test_where_nothing_tells_the_number_of_examples_it_is_asked_for():
    with pytest.raises(
        es.UsageError, match=r"cannot be told how many examples .* give .* examples="
    ):
        inspect(recurrent(), 1000)
    facts = inspect(recurrent(examples=lambda b: b[0].shape[1]), 1000)
    assert facts.chance.source == "constant prediction"


def test_a_training_batch_is_only_counted_where_a_metric_asks_for_it():
    rows = list(sequences(0, 0))
    pairs = [(x[:, i], y[i]) for x, y in rows for i in range(4)]

    def collate(items):
        return torch.stack([x for x, _ in items], 1), torch.stack([y for _, y in items])

    inspect(recurrent(valid=pairs, collate=collate, batch_size=4), 1000)
    measured = recurrent(valid=pairs, collate=collate, metric=lambda m, b: (m(b[0]) - b[1]).abs())
    with pytest.raises(es.UsageError, match=r"a batch of train .* give the problem examples="):
        inspect(measured, 1000)


def test_what_a_user_says_of_the_number_is_what_counts():
    problem = line_problem(examples=lambda batch: 2 * len(batch[0]))
    assert problem.evaluate(problem.make_model(0), "valid", 0).examples == 64
    with pytest.raises(es.UsageError, match=r"examples gives for a batch is 0\.5"):
        inspect(line_problem(examples=lambda batch: 0.5), 1000)
    with pytest.raises(es.UsageError, match="examples is a int; it must be a function"):
        line_problem(examples=3)


def test_a_last_batch_that_breaks_is_told_with_its_remedy():
    class Fixed(nn.Module):
        """A network whose first hidden state is a buffer for a batch of 10."""

        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.RNN(2, 4, batch_first=True), nn.Linear(4, 3)
            self.register_buffer("hidden", torch.zeros(1, 10, 4))

        def forward(self, x):
            return self.head(self.rnn(x[:, None], self.hidden)[0][:, -1])

    x, y = blobs_problem().valid
    with pytest.raises(
        es.UsageError, match=r"last batch of valid holds 5 .* others 10, .* drop_last"
    ):
        inspect(blobs_problem(model=Fixed, valid=(x[:45], y[:45]), batch_size=10), 1000)
    loader = DataLoader(TensorDataset(x[:45], y[:45]), batch_size=10, drop_last=True)
    facts = inspect(blobs_problem(model=Fixed, valid=loader, batch_size=10), 1000)
    assert facts.chance.source == "constant prediction"
