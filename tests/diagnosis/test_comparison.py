"""Rates against the best one: how sure the intervals are, and what is paired with what."""

import math
from dataclasses import replace

import numpy as np
import pytest
from diagnosis.written_histories import CHANCE, evaluation, history

from etascope.diagnosis.comparison import compare
from etascope.diagnosis.verdict import judge
from etascope.records import Chance


def seeds_of(lr, losses, seeds=None):
    seeds = range(len(losses)) if seeds is None else seeds
    return [history(lr, loss, 0.95, seed=s) for s, loss in zip(seeds, losses, strict=True)]


def judged(*groups, chance=CHANCE):
    return judge([h for group in groups for h in group], chance, 100).rates


def alike(rng, rates, seeds, steps):
    """Rates that are equally good: the seed, the noise of each trial, and the held-out batches."""
    luck, hard = rng.normal(0, 1, seeds), rng.normal(0, 1, 12)
    groups = {}
    for index in range(rates):
        last = steps[index % len(steps)]
        lr, groups[10.0**-index] = 10.0**-index, []
        for seed in range(seeds):
            found = []
            for step in (s for s in sorted(set(steps)) if s <= last):
                own = rng.normal(0, 0.05) if seeds > 1 else 0.0
                batches = luck[seed] + own + hard + rng.normal(0, 0.05, 12)
                blank = evaluation(step, float(batches.mean()))
                found.append(replace(blank, batch_losses=tuple(batches)))
            groups[lr].append(replace(history(lr, 1.0, seed=seed), evaluations=tuple(found)))
    return groups


@pytest.mark.parametrize(
    ("rates", "seeds", "steps"),
    [(2, 3, (100,)), (8, 1, (100,)), (8, 3, (100,)), (7, 2, (20, 50, 100))],
)
def test_among_equal_rates_one_is_seldom_called_worse(rates, seeds, steps):
    """Over studies of equal rates, at most alpha call any of them worse than the leader."""
    rng, studies, wrong = np.random.default_rng(0), 300, 0
    for _ in range(studies):
        # At a chance loss of minus 1000 no gap is allowed: the strictest case.
        found, _ = compare(alike(rng, rates, seeds, steps), Chance(-1e3, "given"), 100, 0.02, 0.05)
        wrong += any(v.evidence["gap_low"] > 0 for v in found.values() if "gap" in v.evidence)
    assert wrong / studies <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


def test_the_allowed_gap_is_never_negative():
    """Both learn by accuracy, with losses above that of knowing nothing."""
    found = judged(seeds_of(0.1, [4.0]), seeds_of(0.01, [4.0005]))
    assert found[0.01].evidence["gap_allowed"] == 0.0
    assert found[0.1].name == "best"


def test_one_seed_in_common_is_one_difference_with_the_pooled_variance():
    """The held-out batches of that seed agree to the last digit, and tell nothing of its luck."""
    leader, near = seeds_of(0.1, [0.10, 0.14, 0.12]), seeds_of(0.2, [0.13, 0.15, 0.16])
    single = seeds_of(0.3, [0.17], seeds=[1])
    gap = judged(leader, near, single)[0.3].evidence
    width = gap["gap_high"] - gap["gap_low"]
    full = judged(leader, near, single)[0.2].evidence
    assert gap["gap"] == pytest.approx(0.03)
    assert width == pytest.approx(math.sqrt(3) * (full["gap_high"] - full["gap_low"]))


def test_one_seed_in_common_and_nothing_to_pool_has_no_interval():
    found = judged(seeds_of(0.1, [0.10, 0.14]), seeds_of(0.3, [0.9], seeds=[1]))[0.3]
    assert found.name == "undecided"
    assert found.evidence["gap_low"] == -math.inf
    assert "higher by 0.760, with nothing to tell its spread by, than at rate 0.1" in found.reason


def test_with_one_seed_the_interval_is_centred_on_the_reported_losses():
    """The last batch is a single example and says the opposite."""
    ours, theirs = history(0.1, 0.1, 0.97), history(0.01, 0.2, 0.95)
    losses = [(0.1, [0.1, 0.1, 0.1, 0.1]), (0.2, [0.21, 0.2, 0.2, 0.0])]
    trials = [
        replace(h, evaluations=(replace(h.evaluations[0], loss=loss, batch_losses=tuple(parts)),))
        for h, (loss, parts) in zip((ours, theirs), losses, strict=True)
    ]
    gap = judged(trials)[0.01].evidence
    assert gap["gap"] == pytest.approx(0.1)
    assert (gap["gap_low"] + gap["gap_high"]) / 2 == pytest.approx(0.1)


def test_reasons_give_the_gap_its_direction_and_its_interval():
    higher = judged(seeds_of(0.001, [0.15]), seeds_of(0.0001, [1.65]))[0.0001].reason
    assert higher == (
        "held-out loss higher by 1.50 (95 % interval 1.50 to 1.50) than at rate 0.001; "
        "up to 0.0430 counts as equal"
    )
    # The mean of the leader's three seeds is lower, but not in the two that both have.
    lower = judged(
        seeds_of(0.1, [0.3, 0.3, 0.0]), seeds_of(0.01, [0.2, 0.26]), seeds_of(1.0, [0.4, 0.3, 0.4])
    )
    assert "held-out loss lower by 0.0700 (95 % interval −" in lower[0.01].reason


def test_seeds_without_a_common_step_are_undecided():
    early = replace(
        history(0.01, 0.5, 0.9, step=5, target=5), evaluations=(evaluation(5, 0.5, 0.9),)
    )
    found = judged([early, history(0.01, 0.2, 0.95, seed=1)], seeds_of(0.1, [0.1, 0.1]))
    assert found[0.01].name == "undecided"
    assert "common step" in found[0.01].reason
    assert found[0.1].name == "best"
