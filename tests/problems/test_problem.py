import pytest
import torch
from small import blobs_problem, line_problem
from torch import nn

import etascope as es
from etascope.problems.problem import evaluating
from etascope.randomness import undisturbed

CPU = torch.device("cpu")


def test_evaluation_is_the_mean_over_examples_not_over_batches():
    """The last batch is smaller, and still each example counts once."""
    problem = line_problem(batch_size=7)
    with undisturbed(CPU):
        model = problem.make_model(0)
        found = problem.evaluate(model, "valid", 3)
        x, y = problem.valid
        whole = float((model(x) - y).square().mean().detach())
    assert found.loss == pytest.approx(whole, rel=1e-6)
    assert found.examples == 32
    assert len(found.batch_losses) == 11
    assert found.step == 3


def test_a_rung_takes_the_first_examples_in_whole_batches():
    problem = blobs_problem()
    with undisturbed(CPU):
        model = problem.make_model(0)
        some = problem.evaluate(model, "valid", 0, 25)
        all_ = problem.evaluate(model, "valid", 0)
    assert some.examples == 30
    assert all_.examples == 100
    assert all_.batch_losses[:3] == some.batch_losses


def test_accuracy_counts_hits_and_a_scalar_metric_stands_for_its_batch():
    with undisturbed(CPU):
        hits = blobs_problem()
        found = hits.evaluate(hits.make_model(0), "valid", 0)
        assert found.correct == round(found.metric * 100)
        scalar = blobs_problem(metric=lambda m, b: 0.25)
        found = scalar.evaluate(scalar.make_model(0), "valid", 0)
    assert found.metric == 0.25
    assert found.correct is None


def test_evaluating_runs_the_network_once_for_loss_and_metric():
    forwards = []

    class Counts(nn.Linear):
        def forward(self, x):
            forwards.append(self.training)
            return super().forward(x)

    problem = blobs_problem(model=lambda: Counts(2, 3))
    problem.is_cut("valid")
    forwards.clear()
    with undisturbed(CPU):
        model = problem.make_model(0)
        problem.evaluate(model, "valid", 0)
    assert forwards == [False] * 10


def test_a_loss_that_changes_the_output_in_place_does_not_fool_the_metric():
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).mul_(-1), batch[1])

    honest = blobs_problem()
    spoiled = blobs_problem(loss=loss)
    with undisturbed(CPU):
        model = honest.make_model(0)
        assert (
            spoiled.evaluate(model, "valid", 0).metric == honest.evaluate(model, "valid", 0).metric
        )


def test_evaluating_leaves_the_model_as_it_was_also_on_an_exception():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[1].eval()

    def broken():
        with evaluating(model):
            assert not model.training
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert model.training
    assert not model[1].training
    assert "forward" not in vars(model)


def test_an_existing_module_is_where_every_trial_starts():
    given = nn.Linear(1, 1)
    problem = line_problem(model=given)
    with undisturbed(CPU):
        one, two = problem.make_model(0), problem.make_model(1)
    assert one is not given
    assert torch.equal(one.weight, given.weight)
    assert torch.equal(two.weight, given.weight)


def fine_tuned():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    model[1].eval()
    return model


def whole(train):
    return fine_tuned().train(train)


@pytest.mark.parametrize("factory", [False, True])
def test_what_is_frozen_stays_frozen_and_a_saved_model_is_trained(factory):
    """A batch norm in evaluation mode keeps it; a model that is in it as a whole does not."""
    for made, modes in (
        (fine_tuned, [True, True, False, True, True]),
        (lambda: whole(False), [True] * 5),
        (lambda: whole(True), [True] * 5),
    ):
        given = made()
        before = [m.training for m in given.modules()]
        problem = blobs_problem(model=(lambda given=given: given) if factory else given)
        with undisturbed(CPU):
            model = problem.make_model(0)
            assert [m.training for m in model.modules()] == modes
            problem.evaluate(model, "valid", 0)
            assert [m.training for m in model.modules()] == modes
        assert [m.training for m in given.modules()] == before


def test_a_frozen_batch_norm_keeps_its_statistics_through_a_study(tmp_path):
    given = fine_tuned()
    seen = []

    def loss(model, batch):
        seen.append(model[1].running_mean.clone())
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    es.sweep(blobs_problem(model=given, loss=loss), [0.1], steps=3, optimizer="sgd", out=tmp_path)
    assert all(torch.equal(mean, given[1].running_mean) for mean in seen)
