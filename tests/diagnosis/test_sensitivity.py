"""Sensitivity is the expected excess loss of a rate drawn at random."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etascope.diagnosis.sensitivity import sensitivity

LRS = [10.0**k for k in range(-4, 2)]


def test_where_every_rate_is_as_good_it_is_nothing():
    assert sensitivity(dict.fromkeys(LRS, 0.3), 2.0, 1e-4, 10.0) == pytest.approx(0.0)


@given(st.lists(st.floats(0, 2), min_size=6, max_size=6), st.floats(-3, 3))
def test_it_does_not_depend_on_the_unit_of_the_rate_nor_on_a_shift_of_the_loss(losses, shift):
    plain = sensitivity(dict(zip(LRS, losses, strict=True)), 2.0, 1e-4, 10.0)
    moved = {1000 * lr: loss + shift for lr, loss in zip(LRS, losses, strict=True)}
    assert sensitivity(moved, 2.0 + shift, 0.1, 10_000.0) == pytest.approx(plain, abs=1e-9)
    assert 0 <= plain <= 2.0


def test_it_is_the_mean_over_random_rates():
    losses = dict(zip(LRS, [1.5, 0.9, 0.4, 0.3, 7.0, math.inf], strict=True))
    draws = np.exp(np.random.default_rng(0).uniform(*np.log([1e-4, 10.0]), 100_000))
    capped = np.minimum(list(losses.values()), 2.0)
    expected = np.interp(np.log(draws), np.log(LRS), capped).mean() - 0.3
    assert sensitivity(losses, 2.0, 1e-4, 10.0) == pytest.approx(expected, abs=0.01)


def test_an_empty_range_or_no_rate_is_refused():
    with pytest.raises(ValueError, match="range"):
        sensitivity({0.1: 1.0}, 2.0, 0.1, 0.1)
    with pytest.raises(ValueError, match="rates"):
        sensitivity({}, 2.0, 0.1, 1.0)
