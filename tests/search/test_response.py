"""The lowest point and the band of a response that is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etascope.search.response import band, lowest


@given(st.floats(-0.24, 0.24), st.floats(0.1, 10), st.floats(-3, 1))
def test_the_lowest_point_of_a_parabola_is_exact(offset, bend, centre):
    lrs = [10 ** (centre + 0.5 * k) for k in range(-3, 4)]
    best = 10 ** (centre + offset)
    scores = {lr: bend * math.log(lr / best) ** 2 - 1 for lr in lrs}
    assert lowest(scores) == pytest.approx(best, rel=1e-6)


def test_it_is_at_most_half_way_to_a_neighbour():
    half_way = 0.01 * math.sqrt(10)
    assert lowest({0.001: 9.0, 0.01: 0.0, 0.1: 0.0, 1.0: 9.0}) == pytest.approx(half_way)
    assert lowest({0.1: 1.0, 1.0: 2.0}) == 0.1
    assert lowest({0.1: 1.0, 1.0: math.inf}) == 0.1


@given(st.floats(0.5, 5), st.floats(0.01, 0.2))
def test_the_ends_of_the_band_of_a_parabola_are_exact(bend, allowed):
    lrs = [10 ** (0.5 * k) for k in range(-3, 4)]
    scores = {lr: bend * math.log10(lr) ** 2 for lr in lrs}
    low, high = band(scores, 1.0, allowed)
    reach = math.sqrt(allowed / bend)
    if reach < 0.5:
        assert math.log10(high.lr) == pytest.approx(reach, rel=1e-6)
        assert math.log10(low.lr) == pytest.approx(-reach, rel=1e-6)
        assert (low.inside, low.outside) == (1.0, lrs[2])


def test_a_band_that_reaches_the_border_ends_there():
    low, high = band({0.1: 0.0, 1.0: 0.0}, 0.1, 0.5)
    assert (low.lr, low.outside, high.lr, high.outside) == (0.1, None, 1.0, None)
