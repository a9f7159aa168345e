"""Every ready-made problem can be trained, learns, and is what its description says."""

import pytest
import torch
from small import gather

import etascope as es
from etascope.engines.base import Work
from etascope.engines.serial import SerialEngine
from etascope.plan import Plan
from etascope.problems.checks import inspect
from etascope.problems.quadratic import CURVATURES, NOISE
from etascope.problems.registry import PROBLEMS
from etascope.records import TrialId

LEARNS = {  # a rate and a number of steps by which the problem is well below chance
    "mnist-mlp": (1e-2, 30),
    "mnist-batchnorm": (1e-2, 30),
    "mnist-lstm": (1e-2, 60),
    "diabetes": (1e-2, 60),
    "char-transformer": (3e-3, 40),
    "quadratic": (0.1, 60),
}


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "mnist-cnn"])
def test_it_passes_the_door_and_learns(name):
    problem, (lr, steps) = es.get_problem(name), LEARNS[name]
    facts = inspect(problem, 500)
    assert facts.name == name
    assert problem.reference == name
    trial = TrialId(lr, 0)
    with SerialEngine(problem, Plan(steps=steps, rungs=(steps,))) as engine:
        bursts, _ = gather(engine, [Work(trial, steps)])
    assert bursts[trial][-1].evaluations[0].loss < 0.85 * facts.chance.loss


def test_the_held_out_text_is_not_trained_on():
    problem = es.get_problem("char-transformer")
    inputs, targets = problem.train
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    seen = {tuple(row) for row in inputs.tolist()}
    held_out = [tuple(row) for row in problem.valid[0].tolist()]
    # Headings and rules of dashes come again; whole stretches hardly ever do.
    assert sum(row in seen for row in held_out) < 0.02 * len(held_out)


def test_the_quadratic_has_the_curvatures_and_the_floor_that_it_says():
    problem = es.get_problem("quadratic")
    model = problem.make_model(0)
    assert float(CURVATURES.max()) == pytest.approx(10.0)
    at = problem.valid[0][0]
    hessian = torch.autograd.functional.hessian(
        lambda weights: 0.5 * (model.h * (weights - at) ** 2).sum(), torch.zeros(20)
    )
    torch.testing.assert_close(hessian.diagonal(), CURVATURES)
    with torch.no_grad():
        model.weights.copy_(problem.train[0].mean(0))
    floor = 0.5 * float((CURVATURES * NOISE**2).sum())
    assert problem.evaluate(model, "valid", 0).loss == pytest.approx(floor, rel=0.05)
