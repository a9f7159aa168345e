"""`find` answers with evidence, keeps its budget, can be cut off, and obeys what is known."""

import copy
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import blobs_problem, line_problem
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import etascope as es
from etascope.reporting.found import standing
from etascope.search.finding import Standing


def steps_in(finding):
    return sum(h.step for h in es.open_study(finding.study).trials)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("found")
    return es.find(blobs_problem(), steps=64, budget=8, out=out / "study")


def test_the_finding_says_rate_band_edge_status_and_cost(found):
    low, high = found.band
    assert low <= found.lr <= high < found.edge.low
    assert found.status == "resolved"
    assert found.edge.low < found.edge.lr < found.edge.high
    assert found.safety == pytest.approx(math.log10(found.edge.lr / found.lr))
    assert found.cost <= found.budget
    assert found.cost == pytest.approx(steps_in(found) / 64)
    assert found.needed is None
    # Every rate that it speaks of was trained.
    assert found.lr in {standing.lr for standing in found.rates}


def test_the_finding_can_be_read_from_the_study_alone(found):
    study = es.open_study(found.study)
    assert study.finding == found
    document = json.loads(json.dumps(study.to_dict()))
    assert document["finding"]["lr"] == found.lr
    assert document["finding"]["edge"]["lr"] == found.edge.lr
    es.report(study, study.path / "report.html")
    page = (study.path / "report.html").read_text()
    assert f"Use a learning rate of {found.lr:g}" in page
    assert found.reason in page


def test_the_answer_that_was_given_stays_when_constants_change(found, monkeypatch):
    monkeypatch.setattr("etascope.search.edge.DRIFT", 5.0)
    monkeypatch.setattr("etascope.search.board.OPTIMISTIC", 0.1)
    assert es.open_study(found.study).finding == found


def test_asked_again_with_other_constants_it_gives_the_answer_that_was_given(tmp_path, monkeypatch):
    options = {"steps": 64, "budget": 4, "out": tmp_path}
    found = es.find(blobs_problem(), **options)
    monkeypatch.setattr("etascope.search.race.SEEDS", 2)
    monkeypatch.setattr("etascope.search.board.OPTIMISTIC", 10.0)
    assert es.find(blobs_problem(), **options) == found
    assert steps_in(found) <= 4 * 64


def test_once_its_code_is_mended_the_answer_changes_and_is_recorded_anew(tmp_path):
    broken = True

    def loss(model, batch):
        x, y = batch
        found = nn.functional.cross_entropy(model(x), y)
        if broken and found > 2.5:
            raise RuntimeError("not so high")
        return found

    problem = blobs_problem(loss=loss)
    before = es.find(problem, steps=64, out=tmp_path)
    broken = False
    after = es.find(problem, steps=64, out=tmp_path)
    assert before.edge.lr is None
    assert after.edge.lr is not None
    assert es.open_study(tmp_path).finding == after
    assert es.find(problem, steps=64, out=tmp_path) == after


def test_the_verdicts_agree_with_the_finding(found):
    """Fresh seeds are trained at few rates: no rate is called paused for the sake of one."""
    study = es.open_study(found.study)
    trained = {h.trial.lr for h in study.trials if h.trial.seed == 0 and h.step == 64}
    assert study.best in trained
    assert not study.verdicts[study.best].provisional
    names = {lr: verdict.name for lr, verdict in study.verdicts.items()}
    assert list(names.values()).count("best") == 1
    assert names[found.lr] in ("best", "good")


def test_every_rate_of_the_race_is_told_how_it_stands(found):
    finding = replace(found, lr=0.01, band=(0.008, 0.02), loss=0.1, chance=1.1)

    def told(lr, expected, failed=False):
        return standing(finding, Standing(lr, 64, 1, 0.5, failed, expected))

    assert told(0.01, 0.1) == "suggested"
    assert told(0.009, 0.11) == "as good"
    assert told(0.005, 0.115) == told(0.03, 0.115) == "about 1.5 % worse"
    assert told(0.001, 0.3) == "too slow: about 20 % worse"
    assert told(0.1, 0.3) == "too high: about 20 % worse"
    assert (told(0.0001, None), told(0.2, None)) == ("too slow", "learns")
    assert (told(0.0001, None, True), told(1.0, None, True)) == ("too slow so far", "failed")
    rates = (Standing(0.01, 3, 1, 0.5, False, None),)
    finding = replace(found, lr=None, band=None, rates=rates)
    assert (told(0.001, None), told(0.01, None)) == ("learns", "learns")
    assert (told(0.0001, None, True), told(1.0, None, True)) == ("too slow so far", "failed")


class CrashError(KeyboardInterrupt):
    """What ends a process in the middle of it."""


class Crashing:
    """Progress that crashes at a burst, or at a step."""

    def __init__(self, bursts=math.inf, ticks=math.inf):
        self.bursts, self.ticks = bursts, ticks

    def begin(self, study, waiting, why=None): ...
    def note(self, text): ...
    def stopping(self): ...

    def tick(self, trial, step, loss, metric):
        self.ticks -= 1
        if self.ticks < 0:
            raise CrashError

    def burst(self, burst):
        self.bursts -= 1
        if self.bursts < 0:
            raise CrashError


@pytest.mark.parametrize("crash", [{"bursts": 4}, {"bursts": 1}, {"ticks": 37}])
def test_cut_off_again_and_again_it_ends_with_the_same_finding(tmp_path, found, crash):
    for _ in range(1000):
        try:
            again = es.find(
                blobs_problem(),
                steps=64,
                budget=8,
                engine="serial",
                out=tmp_path,
                progress=Crashing(**crash),
            )
            break
        except CrashError:
            unfinished = es.open_study(tmp_path).finding
            # With its last burst a race is done, whether or not anybody was told.
            if "stopped before" in unfinished.reason:
                assert unfinished.status == "unresolved"
            else:
                assert replace(unfinished, study=found.study) == found
    ours, theirs = again.to_dict(), found.to_dict()
    assert ours.pop("study") != theirs.pop("study")
    assert ours == theirs


@pytest.mark.parametrize("engine", ["processes", "stacked"])
def test_every_engine_finds_the_same(tmp_path, engine):
    one = es.find(line_problem(), steps=40, optimizer="sgd", engine="serial", out=tmp_path / "one")
    two = es.find(line_problem(), steps=40, optimizer="sgd", engine=engine, out=tmp_path / "two")
    assert two.lr == pytest.approx(one.lr, rel=0.05)
    assert two.edge.lr == pytest.approx(one.edge.lr, rel=0.05)


def test_a_larger_budget_goes_on_from_what_is_trained(tmp_path):
    small = es.find(blobs_problem(), steps=64, budget=2, out=tmp_path)
    assert small.status == "unresolved"
    assert small.needed > small.cost
    before = {h.trial: h.loss.tolist() for h in es.open_study(tmp_path).trials}
    large = es.find(blobs_problem(), steps=64, budget=8, out=tmp_path)
    assert large.status == "resolved"
    after = {h.trial: h.loss.tolist() for h in es.open_study(tmp_path).trials}
    for trial, losses in before.items():
        assert after[trial][: len(losses)] == losses


def test_a_study_with_other_rungs_is_refused(tmp_path):
    es.sweep(blobs_problem(), [1e-3], steps=16, out=tmp_path)
    with pytest.raises(es.UsageError, match="rungs"):
        es.find(blobs_problem(), steps=16, out=tmp_path)


def test_what_a_sweep_with_the_same_rungs_has_trained_is_not_trained_again(tmp_path):
    found = es.find(blobs_problem(), steps=64, budget=4, rungs=[20], out=tmp_path / "alone")
    rungs = es.open_study(found.study).plan["rungs"]
    es.sweep(blobs_problem(), [0.1, 0.01], steps=64, rungs=rungs, out=tmp_path / "joined")
    again = es.find(blobs_problem(), steps=64, budget=4, rungs=[20], out=tmp_path / "joined")
    assert (again.lr, again.band, again.cost) == (found.lr, found.band, found.cost)
    study = es.open_study(tmp_path / "joined")
    assert {h.step for h in study.trials if h.trial.lr == 0.01} == {64}


# Laws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "edge"), [("sgd", 0.2), ("sgd-momentum", 0.38)])
def test_on_the_quadratic_the_edge_is_what_theory_says(tmp_path, optimizer, edge):
    """2/λmax for gradient descent and (2 + 2β)/λmax for the heavy ball, with λmax = 10."""
    found = es.find("quadratic", steps=300, optimizer=optimizer, budget=12, out=tmp_path)
    assert found.edge.low <= edge <= found.edge.high
    assert found.edge.decades <= 0.5
    assert found.band[1] < edge


def scaled(factor):
    problem = line_problem()
    return line_problem(loss=lambda model, batch: factor * problem.loss(model, batch))


def test_rescaling_the_loss_moves_the_answer_of_sgd_by_the_inverse_factor(tmp_path):
    one = es.find(scaled(1.0), steps=64, optimizer="sgd", budget=8, out=tmp_path / "one")
    two = es.find(scaled(8.0), steps=64, optimizer="sgd", budget=8, out=tmp_path / "two")
    low, high = one.band
    assert low <= 8 * two.lr <= high
    assert one.edge.low <= 8 * two.edge.lr <= one.edge.high


def test_rescaling_the_loss_leaves_the_answer_of_adam(tmp_path):
    one = es.find(scaled(1.0), steps=64, optimizer="adam", budget=8, out=tmp_path / "one")
    two = es.find(scaled(8.0), steps=64, optimizer="adam", budget=8, out=tmp_path / "two")
    assert two.lr == one.lr


def test_the_objective_can_be_the_metric(tmp_path):
    found = es.find(blobs_problem(), steps=64, objective="metric", out=tmp_path)
    assert found.loss is None
    assert found.metric > 0.9
    assert found.chance == pytest.approx(0.4, abs=0.1)
    assert all(standing.score >= 0 for standing in found.rates)
    assert es.open_study(tmp_path).finding == found


# Nothing of the user's is touched -----------------------------------------------------------------


def everything(model, optimizer, loader):
    """Every bit that a user could miss, as values to compare."""
    states = [copy.deepcopy(part.state_dict()) for part in (model, optimizer)]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    order = loader.generator.get_state()
    legacy = np.random.get_state()[1].copy()  # noqa: NPY002 - the global one is what users have
    draws = (torch.random.get_rng_state(), legacy, random.getstate())
    flags = (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.backends.cudnn.benchmark,
    )
    return states, grads, modes, order, draws, flags


def same(one, other):
    if isinstance(one, torch.Tensor | np.ndarray):
        return bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("raises", [False, True])
def test_every_bit_of_the_users_objects_is_as_before(tmp_path, raises):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    points = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    labels = (points.sum(1) > 0).long()
    loader = DataLoader(
        TensorDataset(points[:80], labels[:80]),
        batch_size=16,
        shuffle=True,
        generator=torch.Generator().manual_seed(3),
    )
    for inputs, targets in loader:  # so that gradients, buffers and states are there to be spoilt
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    model[2].eval()
    calls = 0

    def loss(trained, batch):
        nonlocal calls
        calls += torch.is_grad_enabled() and (tmp_path / "study.json").exists()  # past the door
        if raises and calls > 20:
            raise ZeroDivisionError("in the middle")
        return nn.functional.cross_entropy(trained(batch[0]), batch[1])

    problem = es.Problem(model=model, loss=loss, train=loader, valid=(points[80:], labels[80:]))
    before = everything(model, optimizer, loader)
    found = es.find(problem, steps=24, budget=3, engine="serial", out=tmp_path)
    assert same(everything(model, optimizer, loader), before)
    if raises:
        assert "in the middle" in str(es.open_study(found.study).to_dict())


# What cannot work ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"budget": 0}, "budget is 0"),
        ({"budget": "much"}, "budget is 'much'"),
        ({"budget": math.nan}, "budget is nan"),
        ({"tolerance": -0.1}, "tolerance is -0.1"),
        ({"objective": "accuracy"}, "choose loss or metric"),
        ({"lrs": [0.0]}, "a learning rate is 0.0"),
        ({"lrs": 0.1}, "pass a list of rates"),
        ({"seed": -1}, "a seed is -1"),
        ({"optimizer": "adm"}, "did you mean"),
        ({"objective": "metric"}, "needs a problem with a metric"),
        ({"steps": 0}, "steps is 0"),
        ({"rungs": 3}, "rungs is 3"),
    ],
)
def test_wrong_use_is_one_sentence_before_any_training(tmp_path, options, told):
    with pytest.raises(es.UsageError, match=told):
        es.find(line_problem(), **{"steps": 20, **options}, out=tmp_path / "study")
    assert not (tmp_path / "study" / "steps.f64").exists()


def test_a_loss_that_is_constant_has_no_answer(tmp_path):
    problem = line_problem(loss=lambda model, batch: 1 + 0 * model(batch[0]).sum())
    with pytest.raises(es.UsageError, match="gradient of the untrained model is 0"):
        es.find(problem, steps=20, out=tmp_path)


def test_where_nothing_can_be_learned_no_budget_and_no_edge_is_named(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 5, generator=generator), torch.randint(2, (400,), generator=generator)
    problem = blobs_problem(
        model=lambda: nn.Linear(5, 2),
        train=(x[:200], y[:200]),
        valid=(x[200:300], y[200:300]),
        test=(x[300:], y[300:]),
    )
    found = es.find(problem, steps=40, out=tmp_path)
    assert (found.lr, found.status, found.needed, found.edge.lr) == (None, "unresolved", None, None)
    assert found.cost < found.budget / 2
    assert {standing(found, rate) for rate in found.rates} <= {"no better than chance", "failed"}


def test_a_model_without_parameters_is_refused(tmp_path):
    with pytest.raises(es.UsageError, match="no parameter to train"):
        es.find(line_problem(model=nn.Identity), steps=20, out=tmp_path)


def test_a_model_that_fails_at_every_rate_says_so_with_the_smallest(tmp_path):
    def explosive(model, lr):
        return torch.optim.SGD(model.parameters(), lr=1e30 * lr)

    found = es.find(line_problem(), steps=20, optimizer=explosive, out=tmp_path)
    assert found.lr is None
    smallest = min(standing.lr for standing in found.rates)
    assert smallest < 1e-5
    assert f"the smallest, {smallest:g}" in found.reason.replace("e-0", "e-")
    assert "became" in found.reason


def test_a_data_set_smaller_than_a_batch_is_one_batch(tmp_path):
    found = es.find(line_problem(batch_size=1000), steps=40, optimizer="sgd", out=tmp_path)
    assert found.lr is not None


def test_a_budget_too_small_to_say_anything_is_unresolved_with_one_that_would_do(tmp_path):
    found = es.find(line_problem(), steps=20, budget=0.2, out=tmp_path)
    assert found.lr is None
    assert found.status == "unresolved"
    assert found.needed > 0.2
    assert "budget" in found.reason
