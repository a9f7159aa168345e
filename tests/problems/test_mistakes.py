"""Common mistakes: one sentence with the true cause, and what to write instead."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from small import blobs_problem, line_problem
from torch import nn
from torch.nn import functional as F

import etascope as es
from etascope.plan import Plan
from etascope.problems.checks import check_parts, inspect
from etascope.records import TrialId
from etascope.trial import Trial

x, y = blobs_problem().train
column = line_problem().train


def classes(m, b):
    return F.cross_entropy(m(b[0]), b[1])


def criterion(output, target):
    return F.cross_entropy(output, target)


class Demanding(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.head = nn.Linear(2, width)


def make(width):
    return nn.Linear(2, width)


def two(m, b):
    return F.cross_entropy(m(b[0], b[1]), b[1])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loss": nn.CrossEntropyLoss()}, r"lambda model, batch: CrossEntropyLoss\(model\(batch"),
        ({"loss": criterion}, r"criterion takes \(output, target\), and the loss of a problem is"),
        ({"loss": F.cross_entropy}, r"cross_entropy takes \(output, target\)"),
        ({"loss": nn.CrossEntropyLoss}, "loss is the class CrossEntropyLoss; make one, and pass"),
        ({"metric": nn.CrossEntropyLoss}, "metric is the class CrossEntropyLoss"),
        (
            {"metric": lambda out, target: (out.argmax(1) == target).float()},
            r"metric takes \(output, target\), and the metric of a problem is called",
        ),
        (
            {"model": Demanding},
            r"missing 1 .*called without arguments, so pass .*lambda: Demanding",
        ),
        ({"model": make}, "missing 1 .*it is called without arguments"),
        ({"loss": two}, r"takes 2 positional .* \(in test_mistakes.py, line \d+\); the batch is a"),
        (
            {"loss": lambda m, b: m(b).sum()},
            r"batch is a tuple of float32 \[20, 2\] and int64 \[20\]",
        ),
        ({"loss": lambda m, b: m(b["x"]).sum()}, "the batch is a tuple of float32"),
        ({"train": (x.double(), y)}, r"float64 and the weights are float32: cast .*\.to\(torch.fl"),
        ({"train": ((x * 10).long(), y)}, r"int64 \[20, 2\] where numbers are wanted: cast it"),
        ({"train": (x, y.float())}, r"float32 \[20\] where classes are wanted: cast it with .long"),
        ({"train": (x, y + 1)}, r"labels go from 1 to 3 .* count from 0: subtract 1"),
        ({"train": (x, y * 2)}, r"labels go from 0 to 4 .*: give the model 5 outputs"),
        ({"train": (x, y - 1)}, r"labels go from -1 to 1 .* pass ignore_index=-1"),
        ({"train": (x, y[:, None])}, r"int64 \[20, 1\]: take the last axis off with .squeeze"),
        (
            {"train": (x.repeat(1, 2), y)},
            r"shapes cannot be multiplied.*float32 \[20, 4\] and int64",
        ),
    ],
)
def test_a_mistake_is_told_with_what_to_write_instead(changes, told):
    with pytest.raises(es.UsageError, match=told) as caught:
        check_parts(blobs_problem(**{"loss": classes, **changes}))
    assert "\n" not in str(caught.value)


def test_targets_of_whole_numbers_pass_where_torch_takes_them():
    inputs, _ = column
    whole = (inputs, torch.ones(64, 1, dtype=torch.int64))
    check_parts(line_problem(loss=lambda m, b: F.mse_loss(m(b[0]), b[1]), train=whole, valid=whole))


frame = pd.DataFrame(x.numpy(), columns=["a", "b"])
series = pd.Series(y.numpy())


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (frame, r"train holds a DataFrame, .* torch.tensor\(x.to_numpy\(\), dtype=torch.float32"),
        (series, "train holds a Series"),
        ((frame, series), "train holds a DataFrame"),
        ((x, series), "train holds a Series"),
        ((frame.to_numpy(), series), "train holds a Series"),
        (scipy.sparse.csr_matrix(x.numpy()), r"csr_matrix, .*torch.tensor\(x.toarray\(\)"),
        ((scipy.sparse.csr_matrix(x.numpy()), y), "train holds a csr_matrix"),
        ((x.to_sparse(), y), "layout torch.sparse_coo, .*make it dense with .to_dense"),
        ((x.tolist(), y.tolist()), r"tuple of 2 lists of 200, which is no tuple of tensors; make"),
        ((x, y.tolist()), "tuple of Tensor and list; make each a tensor"),
    ],
)
def test_tables_lists_and_sparse_matrices_are_no_data(data, told):
    with pytest.raises(es.UsageError, match=told):
        blobs_problem(train=data)


def pairs():
    return [(point, int(label)) for point, label in zip(x, y, strict=True)]


@pytest.mark.parametrize(
    "data",
    [pairs(), tuple(pairs()), (x, y), (x.numpy(), y.numpy()), [x, y], tuple(pairs()[:4]), np.array],
)
def test_ordinary_data_passes(data):
    if data is np.array:
        data = (x.numpy().astype(np.float32), y.numpy().astype(np.int64))
    check_parts(blobs_problem(train=data, loss=classes))


# Evaluation -----------------------------------------------------------------------------------


class Energy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, inputs):
        return self.net(inputs)


def slopes(model, batch):
    """Fit the derivative of the model by its input, as of forces or of a differential equation."""
    inputs = batch[0].detach().requires_grad_()
    (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
    return slope, (slope - batch[1]).square()


def in_place(model, batch):
    batch[0].requires_grad_()
    (slope,) = torch.autograd.grad(model(batch[0]).sum(), batch[0], create_graph=True)
    return (slope - batch[1]).square().mean()


@pytest.mark.parametrize("engine", ["serial", "processes"])
@pytest.mark.parametrize("loss", [lambda m, b: slopes(m, b)[1].mean(), in_place])
def test_a_loss_that_differentiates_by_its_input_is_evaluated(tmp_path, loss, engine):
    problem = line_problem(
        model=Energy, loss=loss, metric=lambda m, b: slopes(m, b)[1].squeeze(1) < 0.5
    )
    study = es.sweep(problem, [0.01], steps=30, engine=engine, out=tmp_path)
    (history,) = study.trials
    assert history.failure is None
    assert history.evaluation("valid").loss < study.problem.chance.loss
    assert problem.loss is loss
    trained = Trial(line_problem(model=Energy, loss=loss), Plan(steps=30), TrialId(0.01, 0))
    assert list(trained.advance(31, stopping=lambda: trained.step >= 20).loss) == list(
        history.loss[:20]
    )


class TwoFaced(nn.Module):
    """Returns another thing in evaluation, as detection models do."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 1)

    def forward(self, inputs):
        found = self.head(inputs)
        return {"out": found, "aux": found} if self.training else found


def test_what_breaks_in_evaluation_mode_only_says_so():
    problem = line_problem(
        model=TwoFaced, loss=lambda m, b: (m(b[0])["out"] - b[1]).square().mean()
    )
    told = r"raised IndexError.* in evaluation mode \(model.eval\(\), without grad.*, though it ran"
    with pytest.raises(es.UsageError, match=told):
        check_parts(problem)


def test_what_breaks_on_the_held_out_data_only_says_so():
    inputs, targets = line_problem().valid
    with pytest.raises(es.UsageError, match=r"on the valid data, raised .*ran on the train data"):
        check_parts(line_problem(valid=(inputs.repeat(1, 2), targets)))


def test_an_evaluation_of_an_own_step_that_differentiates_is_told():
    def make_state(lr):
        model = Energy()
        return {"model": model, "sgd": torch.optim.SGD(model.parameters(), lr=lr)}

    def evaluate(state, batch):
        return slopes(state["model"], batch)[1].mean()

    def step(state, batch):
        loss = evaluate(state, batch)
        state["sgd"].zero_grad()
        loss.backward()
        state["sgd"].step()
        return loss

    problem = es.Problem.from_step(
        make_state, step, evaluate, train=column, valid=column, batch_size=8
    )
    with pytest.raises(
        es.UsageError, match=r"evaluate raised .*without gradients.*enable_grad\(\)"
    ):
        check_parts(problem)


# Held-out sets of one class ---------------------------------------------------------------------


@pytest.mark.parametrize("metric", [None, lambda m, b: m(b[0]).argmax(1) == b[1]])
def test_a_held_out_set_of_one_class_is_told(metric):
    only = y[:60][y[:60] == 1]
    problem = blobs_problem(valid=(x[:60][y[:60] == 1], only), metric=metric, loss=classes)
    with pytest.raises(
        es.UsageError, match=r"every held-out label is 1, .*shuffle before splitting"
    ):
        inspect(problem, 1000)


def test_a_held_out_set_of_equal_numbers_is_none_of_one_class():
    inputs, _ = column
    inspect(line_problem(valid=(inputs, torch.ones(64, 1))), 1000)
