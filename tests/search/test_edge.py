"""The edge is where trainings fail half of the time; its interval says how sure that is."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etascope.search.edge import WIDTHS, Sign, find_edge


def drawn(edge, width, count, seed):
    draw = np.random.default_rng(seed)
    signs = []
    for _ in range(count):
        x = draw.uniform(math.log10(edge) - 1, math.log10(edge) + 1)
        chance = 1 / (1 + math.exp(-(x - math.log10(edge)) / width))
        signs.append(Sign(10**x, 1.0, bool(draw.random() < chance)))
    return signs


def test_the_interval_holds_the_edge_as_often_as_it_says():
    """90 % of 250 over all widths of luck alike, less three standard deviations."""
    held = [
        found.low <= 0.03 <= found.high
        for seed in range(50)
        for width in WIDTHS
        for found in [find_edge(drawn(0.03, width, 12, seed))]
    ]
    assert sum(held) / len(held) > 0.9 - 3 * math.sqrt(0.09 / len(held))


@given(st.floats(-5, 3), st.floats(0.1, 0.9))
def test_the_edge_lies_between_what_passes_and_what_fails(log, gap):
    found = find_edge([Sign(10**log, 1.0, False), Sign(10 ** (log + gap), 1.0, True)])
    assert log - 0.05 < math.log10(found.lr) < log + gap + 0.05
    assert found.low < found.lr < found.high


@given(st.floats(0.01, 100))
def test_scaling_the_rates_scales_the_edge(scale):
    signs = drawn(0.1, 0.1, 8, 3)
    scaled = [sign._replace(lr=sign.lr * scale) for sign in signs]
    one, other = find_edge(signs), find_edge(scaled)
    for ours, theirs in zip(one, other, strict=True):
        assert theirs == pytest.approx(ours * scale, rel=0.1)


def test_more_trainings_narrow_it():
    widths = [find_edge(drawn(0.1, 0.05, count, 1)).decades for count in (3, 10, 60)]
    assert widths[0] > widths[1] > widths[2]


def test_trainings_that_were_judged_early_say_less():
    def width(share):
        return find_edge([Sign(0.1, share, False), Sign(0.12, share, True)]).decades

    assert width(1 / 32) > width(1 / 4) > width(1.0)


def test_nothing_failed_or_nothing_passed():
    assert find_edge([]) == (None, 0.0, math.inf)
    assert find_edge([Sign(0.1, 1.0, False), Sign(1.0, 1.0, False)]) == (None, 1.0, math.inf)
    below = find_edge([Sign(0.1, 1.0, True), Sign(1.0, 1.0, True)])
    assert below.low == 0.0
    assert below.lr < 0.2
