"""What is not finite at the untrained weights is no rate's fault, and whose it is gets said."""

import math

import pytest
import torch
from small import blobs_problem, line_problem
from torch import nn
from torch.nn.functional import cross_entropy

import etascope as es
from etascope.plan import Plan
from etascope.problems.checks import check_parts
from etascope.records import TrialId, merge
from etascope.state import pack, unpack
from etascope.trial import Trial

SGD = {"optimizer": "sgd"}


def train(problem, plan, lr=0.05, seed=0, stops=()):
    """The records of a trial and its last state, paused at each of `stops`."""
    trial_id, bursts, state = TrialId(lr, seed), [], None
    for stop in (*stops, plan.steps):
        trial = Trial(problem, plan, trial_id, state)
        bursts.append(trial.advance(stop))
        if bursts[-1].failure is not None:
            break
        state = unpack(pack(trial.state()))
    return merge(trial_id, plan.steps, bursts), state


def ignoring(every, **changes):
    """Blobs of which each batch of 4 has a chance to hold ignored labels only."""
    problem = blobs_problem()
    x, y = problem.train
    y = y.clone()
    y[torch.rand(len(y), generator=torch.Generator().manual_seed(every)) < 0.6] = -100
    settings = {
        "model": lambda: nn.Linear(2, 3),
        "train": (x, y),
        "batch_size": 4,
        "loss": lambda m, b: cross_entropy(m(b[0]), b[1], ignore_index=-100),
    }
    return blobs_problem(**{**settings, **changes})


class Root(nn.Module):
    """Its gradient is not finite where its input is 0, its output is."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(1, 1)

    def forward(self, x):
        return (self.inner(x).square() * x).sqrt()


# The door -------------------------------------------------------------------------------------


def all_roots(model, batch):
    return (model(batch[0]) - batch[1]).square().mean() + (0 * model(batch[0])).sum().sqrt()


@pytest.mark.parametrize(
    "asked",
    [
        lambda problem, out: es.sweep(problem, [0.1], steps=10, out=out),
        lambda problem, out: es.find(problem, steps=10, out=out),
        lambda problem, out: es.range_test(problem),
    ],
    ids=["sweep", "find", "range_test"],
)
def test_a_gradient_that_is_never_finite_is_the_codes(tmp_path, asked):
    told = (
        r"gradient is not finite in weight, bias, though the loss is .* on 8 of 8 batches: the co"
    )
    with pytest.raises(es.UsageError, match=told):
        asked(line_problem(loss=all_roots), tmp_path)


def test_only_the_parameters_that_are_not_finite_are_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.sound, self.sick = nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, x):
            return self.sound(x) + (0 * self.sick(x)).sqrt()

    with pytest.raises(es.UsageError, match=r"finite in sick\.weight, sick\.bias, though"):
        check_parts(line_problem(model=Two))


def test_a_first_batch_that_cannot_be_used_is_told_with_the_count():
    x, y = line_problem().train
    flag = torch.ones(64, 1)

    def loss(model, batch):
        return ((model(batch[0]) - batch[1]).square() * batch[2]).sum() / batch[2].sum()

    order = torch.randperm(64, generator=es.problems.batches.generator(0, "order", 0))
    flag[order[:8]] = flag[order[40:48]] = 0
    problem = line_problem(train=(x, y, flag), valid=(x, y, torch.ones(64, 1)), loss=loss)
    with pytest.raises(es.UsageError, match=r"loss is nan on 2 of 8 batches.*skip_unusable=True"):
        check_parts(problem)
    assert math.isfinite(check_parts(problem, skip_unusable=True).loss)


def test_no_gradient_at_all_is_told():
    with pytest.raises(es.UsageError, match=r"gradient .* is 0 in every parameter, on 8 batches"):
        check_parts(line_problem(loss=lambda m, b: (m(b[0]).round() - b[1]).square().mean()))


def test_a_gradient_that_is_0_on_some_batches_only_passes():
    def hinge(model, batch):
        return (1 - batch[1] * 100 * model(batch[0])).relu().mean()

    x = torch.ones(64, 1)
    y = torch.ones(64, 1)
    y[50:] = -1

    def model():
        made = nn.Linear(1, 1)
        nn.init.ones_(made.weight)
        return made

    check_parts(line_problem(model=model, loss=hinge, train=(x, y), batch_size=4))


def make_state(lr):
    model = nn.Linear(1, 1)
    return {"model": model, "sgd": torch.optim.SGD(model.parameters(), lr=lr)}


def owned(loss):
    def evaluate(state, batch):
        return loss(state["model"], batch)

    def step(state, batch):
        value = evaluate(state, batch)
        state["sgd"].zero_grad()
        value.backward()
        state["sgd"].step()
        return value

    plain = line_problem()
    return es.Problem.from_step(
        make_state, step, evaluate, train=plain.train, valid=plain.valid, batch_size=8
    )


def test_an_own_step_with_such_a_gradient_is_refused_too():
    with pytest.raises(es.UsageError, match=r"first step makes model\.weight, model\.bias non-fin"):
        check_parts(owned(all_roots))


def test_an_own_step_may_be_too_large_for_the_door():
    """The door takes its step at some rate, and that it breaks there is no fault of the code."""
    check_parts(owned(lambda m, b: 1e18 * (m(b[0]) - b[1]).square().mean()))


def test_an_own_step_with_a_batch_that_cannot_be_used_is_no_rates_fault(tmp_path):
    x, y = ignoring(1).train

    def make(lr):
        model = nn.Linear(2, 3)
        return {"model": model, "sgd": torch.optim.SGD(model.parameters(), lr=lr)}

    def evaluate(state, batch):
        return cross_entropy(state["model"](batch[0]), batch[1], ignore_index=-100)

    def step(state, batch):
        loss = evaluate(state, batch)
        state["sgd"].zero_grad()
        loss.backward()
        state["sgd"].step()
        return loss

    problem = es.Problem.from_step(
        make, step, evaluate, train=(x, y), valid=blobs_problem().valid, batch_size=4
    )
    study = es.sweep(problem, [1e-6, 1e-2], steps=100, out=tmp_path)
    assert [h.failure.cause for h in study.trials] == ["data", "data"]
    with pytest.raises(es.UsageError, match="skip_unusable is for others"):
        es.sweep(problem, [0.1], steps=5, skip_unusable=True, out=tmp_path / "b")


# Training -------------------------------------------------------------------------------------


def test_a_batch_without_a_label_is_named_and_no_rate_blamed():
    plan = Plan(steps=100, **SGD)
    failures = [train(ignoring(1), plan, lr)[0].failure for lr in (1e-6, 1e-3, 1)]
    assert {f.cause for f in failures} == {"data"}
    assert len({(f.step, f.message) for f in failures}) == 1
    first = failures[0]
    assert "untrained weights too, so no learning rate is to blame" in first.message
    assert f"step {first.step})" in first.message
    assert "skip_unusable" in first.remedy


@pytest.mark.parametrize("rungs", [(60,), tuple(range(1, 61))])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_that_one_batch_breaks_is_that_batchs(rungs, accumulate):
    """The loss stays finite there, and the weights are lost with the update."""
    x = torch.rand(64, 1, generator=torch.Generator().manual_seed(0)) + 0.1
    x[17] = 0
    problem = line_problem(model=Root, train=(x, 3 * x), valid=(x[18:], x[18:]), batch_size=4)
    plan = Plan(steps=60, rungs=rungs, accumulate=accumulate, **SGD)
    failures = [train(problem, plan, lr, stops=rungs)[0].failure for lr in (1e-9, 1e-3)]
    assert [f.cause for f in failures] == ["data", "data"]
    assert failures[0] == failures[1]
    assert "gradient is not finite in inner.weight" in failures[0].message
    assert "1 of 16 batches" in failures[0].message


def test_a_gradient_broken_in_a_stream_of_unknown_length_is_found_after_a_stop():
    def batches(seed, epoch):
        for number in range(5):
            x = torch.rand(4, 1) + 0.1
            yield (x * (number != 3 or epoch == 0), x)

    problem = line_problem(model=Root, train=batches)
    plan = Plan(steps=20, **SGD)
    whole, _ = train(problem, plan)
    first = Trial(problem, plan, TrialId(0.05, 0))
    one = first.advance(20, stopping=lambda: first.step == 9)
    two = Trial(problem, plan, TrialId(0.05, 0), unpack(pack(first.state()))).advance(20)
    assert whole.failure.cause == "data"
    assert (one.stop, two.failure) == (9, whole.failure)
    assert "batch 3 of epoch 1" in whole.failure.message


def test_a_rate_that_is_too_high_is_still_the_rates():
    failure = train(line_problem(), Plan(steps=200, **SGD), lr=1e6)[0].failure
    assert failure.cause == "non-finite"
    assert "rate" in failure.remedy


def test_what_is_not_finite_but_never_used_is_no_excuse():
    x, y = line_problem().train
    problem = line_problem(train=(x, y, torch.full((64, 1), math.nan)))
    assert train(problem, Plan(steps=200, **SGD), lr=1e6)[0].failure.cause == "non-finite"


def test_a_held_out_batch_that_cannot_be_used_is_named():
    x, y = blobs_problem().valid
    y = y.clone()
    y[torch.rand(100, generator=torch.Generator().manual_seed(0)) < 0.9] = -100
    failure = train(ignoring(9, valid=(x, y), chance=1.0), Plan(steps=3, **SGD))[0].failure
    assert failure.cause == "data"
    assert "held-out batch" in failure.message


# Going on without them ------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stops", [(), (1, 7, 30, 31, 32), tuple(range(1, 60))])
def test_skipping_goes_on_wherever_it_is_paused(accumulate, stops):
    plan = Plan(steps=60, rungs=(60,), accumulate=accumulate, skip_unusable=True, **SGD)
    whole, end = train(ignoring(1), plan)
    parts, other = train(ignoring(1), plan, stops=stops)
    assert whole.failure is None
    assert whole.skipped == parts.skipped > 0
    assert whole.skipped % accumulate == 0
    assert len(whole.loss) == 60
    assert whole.loss.tolist() == parts.loss.tolist()
    assert all(torch.equal(t, other.model[name]) for name, t in end.model.items())


def test_a_batch_whose_gradient_breaks_is_skipped_before_it_reaches_the_weights():
    x = torch.rand(64, 1, generator=torch.Generator().manual_seed(0)) + 0.1
    x[17] = 0
    problem = line_problem(model=Root, train=(x, 3 * x), valid=(x[18:], x[18:]), batch_size=4)
    history, _ = train(problem, Plan(steps=60, skip_unusable=True, **SGD), 1e-3)
    assert history.failure is None
    assert history.skipped in (3, 4)  # four epochs of 15 batches; the last may end before it


def test_a_skipped_batch_leaves_no_trace_in_batch_statistics():
    model = lambda: nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))  # noqa: E731
    x, y = ignoring(1).train
    x = x.clone()
    x[y == -100] = math.nan
    x[torch.arange(200) % 50 > 0] = ignoring(1).train[0][torch.arange(200) % 50 > 0]
    problem = ignoring(1, model=model, train=(x, y), metric=None)
    history, state = train(problem, Plan(steps=120, skip_unusable=True, **SGD))
    assert history.skipped > 0
    assert all(bool(torch.isfinite(t).all()) for t in state.model.values())


def test_skipping_never_hides_a_rate_that_is_too_high():
    plan = Plan(steps=200, skip_unusable=True, **SGD)
    assert train(line_problem(), plan, lr=1e6)[0].failure.cause == "non-finite"


def test_where_no_batch_can_be_used_any_more_the_trial_ends():
    def batches(seed, epoch):
        for _ in range(5):
            x = torch.rand(4, 1)
            yield (x, x / (epoch == 0))

    history, _ = train(line_problem(train=batches), Plan(steps=20, skip_unusable=True, **SGD))
    assert history.failure.cause == "data"
    assert history.failure.step == 5


@pytest.mark.parametrize("engine", ["serial", "processes", "stacked"])
def test_what_was_skipped_is_in_the_records_of_every_engine(tmp_path, engine):
    options = {"steps": 60, "skip_unusable": True, "optimizer": "sgd", "engine": engine}
    study = es.sweep(ignoring(1), [0.001, 0.01], out=tmp_path, **options)
    expected = train(ignoring(1), Plan(steps=60, skip_unusable=True, **SGD), 0.01)[0]
    assert [h.skipped for h in es.open_study(tmp_path).trials] == [expected.skipped] * 2
    assert study.trials[1].loss.tolist() == expected.loss.tolist()
    assert study.to_dict()["trials"][0]["skipped"] == expected.skipped
    assert es.sweep(ignoring(1), [0.001, 0.01], out=tmp_path, **options).complete


def test_held_out_batches_that_cannot_be_used_are_left_out_for_every_trial(tmp_path):
    x, y = blobs_problem().valid
    y = y.clone()
    y[torch.rand(100, generator=torch.Generator().manual_seed(0)) < 0.8] = -100
    problem = ignoring(1, valid=(x, y), metric=None)
    with pytest.raises(es.UsageError, match=r"untrained model is not finite on \d+ of \d+ batches"):
        es.sweep(problem, [0.1], steps=5, out=tmp_path / "a")
    study = es.sweep(problem, [0.01, 0.1], steps=20, skip_unusable=True, out=tmp_path / "b")
    assert all(h.failure is None for h in study.trials)
    counts = {len(h.evaluation("valid").batch_losses) for h in study.trials}
    assert len(counts) == 1
    assert counts == {len(study.problem.chance.batch_losses)}
    assert len(problem.sources["valid"]._fetch([0])) == 2  # the caller's problem is as it was


def test_a_range_test_ends_with_the_cause_or_goes_on_without_such_batches():
    with pytest.raises(es.UsageError, match=r"range test ended: the loss is nan on batch"):
        es.range_test(ignoring(1), seeds=1)
    assert es.range_test(ignoring(1), seeds=1, skip_unusable=True).valley is not None
