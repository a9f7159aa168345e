"""The rules of the range test on curves whose shape is known."""

import math

import numpy as np
import pytest
from small import blobs_problem, line_problem

import etascope as es
from etascope.search.range_test import read_range_test

LRS = np.logspace(-6, 1, 200)


def curve(fall=-3.0, width=0.3, blow_up=0.0, offset=0.0):
    """A loss that falls from 2 to 1 around `fall`, steepest there, and blows up past `blow_up`."""
    x = np.log10(LRS)
    return offset + 1 + 1 / (1 + np.exp((x - fall) / width)) + np.exp(8 * (x - blow_up))


def test_the_steepest_fall_is_found_but_for_the_lag_of_the_average():
    found = read_range_test(LRS, [curve(-3.0)])
    lag = 10 * 7 / 199  # decades that ten steps of the ladder are
    assert -3.0 <= math.log10(found.steepest.lr) <= -3.0 + 1.5 * lag


def test_moving_the_curve_moves_every_rule():
    one, two = (read_range_test(LRS, [curve(fall, blow_up=fall + 3)]) for fall in (-3.0, -2.0))
    for rule in ("steepest", "minimum"):
        apart = getattr(two, rule).lr / getattr(one, rule).lr
        assert math.log10(apart) == pytest.approx(1.0, abs=0.05)


def test_negative_losses_are_losses():
    """A log-likelihood may be negative: shifting the loss changes no rule."""
    one, two = read_range_test(LRS, [curve()]), read_range_test(LRS, [curve(offset=-50.0)])
    for rule in ("steepest", "valley", "minimum"):
        assert getattr(two, rule).lr == pytest.approx(getattr(one, rule).lr)


def test_what_is_not_finite_ends_the_curve_and_is_never_read():
    broken = curve()
    broken[150:] = math.nan
    found = read_range_test(LRS, [broken, [*curve()[:150], math.inf]])
    assert np.isnan(found.losses[:, 150:]).all()
    assert found.minimum.lr < LRS[150]
    assert found.steepest.each[0] == found.steepest.each[1]


def test_a_loss_that_never_falls_has_no_suggestion():
    found = read_range_test(LRS, [np.linspace(1, 2, 200)])
    assert found.steepest.lr is None
    assert found.minimum.lr is None
    assert read_range_test(LRS, [[math.nan] * 200]).note.startswith("the loss never fell")


def test_the_spread_over_seeds_is_told():
    found = read_range_test(LRS, [curve(-4.0), curve(-3.0), curve(-2.0)])
    assert found.steepest.decades == pytest.approx(2.0, abs=0.1)
    assert found.steepest.lr == pytest.approx(found.steepest.each[1])
    assert "2.0 decades between seeds" in found.note


def test_it_repeats_itself_and_leaves_the_problem_alone():
    problem = blobs_problem()
    one, two = es.range_test(problem), es.range_test(problem)
    assert np.array_equal(one.losses, two.losses, equal_nan=True)
    assert one.losses.shape == (3, 100)
    assert len({row.tobytes() for row in one.losses}) == 3  # seeds differ


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"low": 1.0, "high": 0.1}, "low below high"),
        ({"steps": 2}, "steps is 2"),
        ({"low": 0}, "low is 0"),
        ({"optimizer": "adm"}, "did you mean"),
        ({"seeds": 0}, "seeds is 0"),
    ],
)
def test_wrong_use_is_one_sentence(options, told):
    with pytest.raises(es.UsageError, match=told):
        es.range_test(line_problem(), **options)
