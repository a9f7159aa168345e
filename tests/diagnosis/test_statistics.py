import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from etascope.diagnosis.statistics import (
    below,
    binomial_above,
    binomial_highest,
    holm,
    mean_interval,
    mean_lowest,
    pooled_deviation,
)


@given(n=st.integers(1, 40), share=st.floats(0.01, 0.99), data=st.data())
def test_the_binomial_tail_is_the_sum_of_its_terms(n, share, data):
    k = data.draw(st.integers(0, n))
    tail = sum(math.comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(k, n + 1))
    assert binomial_above(k, n, share) == pytest.approx(min(tail, 1.0), abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.2))
def test_holm_rejects_between_bonferroni_and_no_correction(p_values, alpha):
    rejected = holm(p_values, alpha)
    for p, yes in zip(p_values, rejected, strict=True):
        if p <= alpha / len(p_values):
            assert yes
        if p > alpha:
            assert not yes
    smallest_kept = min(
        (p for p, yes in zip(p_values, rejected, strict=True) if not yes), default=2
    )
    assert all(p <= smallest_kept for p, yes in zip(p_values, rejected, strict=True) if yes)


@settings(max_examples=20)
@given(st.permutations(range(6)))
def test_holm_does_not_depend_on_the_order(order):
    p_values = [0.001, 0.02, 0.009, 0.5, 0.011, 0.04]
    shuffled = holm([p_values[i] for i in order], 0.05)
    assert shuffled == [holm(p_values, 0.05)[i] for i in order]


def test_under_chance_the_family_is_rarely_called_a_learner():
    """2 000 studies of 10 trials that all know nothing: at most alpha of them name a learner."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        p_values = [binomial_above(int(k), 200, 0.1) for k in rng.binomial(200, 0.1, 10)]
        hits += any(holm(p_values, 0.05))
    assert hits / 2000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_the_t_test_keeps_its_level_and_its_direction():
    rng = np.random.default_rng(1)
    p_values = [below(rng.normal(1.0, 1.0, 8), 1.0) for _ in range(2000)]
    assert abs(np.mean(np.array(p_values) < 0.05) - 0.05) < 0.02
    assert below([0.5, 0.6, 0.4], [1.0, 1.1, 0.9]) < 1e-6
    assert below([1.0, 1.1, 0.9], [0.5, 0.6, 0.4]) > 0.99
    assert below([math.nan, 1.0], 2.0) == 1.0
    assert below([], 2.0) == 1.0


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(2000):
        interval = mean_interval(rng.normal(3.0, 2.0, 5), 0.1)
        covered += interval.low <= 3.0 <= interval.high
    assert abs(covered / 2000 - 0.9) < 0.02
    assert mean_interval([1.0], 0.1).high == math.inf


@given(n=st.integers(1, 60), data=st.data(), alpha=st.floats(0.001, 0.2))
def test_the_highest_share_is_the_one_that_so_few_hits_would_just_refute(n, data, alpha):
    k = data.draw(st.integers(0, n - 1))
    highest = binomial_highest(k, n, alpha)
    assert k / n < highest < 1
    assert stats.binom.cdf(k, n, highest) == pytest.approx(alpha, rel=1e-6)


@given(df=st.integers(1, 200), alpha=st.floats(1e-7, 0.5))
def test_the_interval_is_students(df, alpha):
    half = mean_interval([0.0, 0.0], alpha, spread=math.sqrt(2.0), df=df).high
    assert half == pytest.approx(stats.t.isf(alpha / 2, df), rel=1e-6)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_the_pooled_deviation_is_what_least_squares_leaves(seed, rows, columns):
    """Against a dense fit of row and column effects, with about a third of the cells empty."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(rows, columns))
    table[rng.random((rows, columns)) < 0.3] = np.nan
    table[np.arange(rows), rng.integers(columns, size=rows)] = rng.normal(size=rows)
    cells = np.argwhere(np.isfinite(table))
    design = np.zeros((len(cells), rows + columns))
    design[np.arange(len(cells)), cells[:, 0]] = 1
    design[np.arange(len(cells)), rows + cells[:, 1]] = 1
    values = table[tuple(cells.T)]
    fit = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    df = len(cells) - np.linalg.matrix_rank(design)
    spread, found = pooled_deviation(table)
    assert found == df
    if df:
        assert spread**2 == pytest.approx(((values - fit) ** 2).sum() / df, abs=1e-9)
    else:
        assert spread == math.inf


def test_the_lowest_mean_is_students_bound_but_not_below_all_of_many_values():
    few, many = [1.0, 9.0], [3.0, 4.0, 3.5, 3.0, 5.0, 1e9]
    assert mean_lowest(few, 0.025) == mean_interval(few, 0.05).low < 0
    assert mean_lowest(many, 0.025) == 3.0
    assert mean_lowest([1.0], 0.025) == -math.inf
