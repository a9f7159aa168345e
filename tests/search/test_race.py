"""The race decides well and cheaply in worlds that are known."""

import itertools
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from worlds import CHANCE, bowl, outcomes, played, resting, rules

from etascope.records import TrialId
from etascope.search.answer import doubts, good_rates, response, suggestion
from etascope.search.board import SPACING, Board, Outcome
from etascope.search.finding import conclude
from etascope.search.race import ladder_of, race, stops_of


def decades(lr, other):
    return abs(math.log10(lr / other))


@pytest.mark.parametrize("best", [3e-4, 1e-3, 4e-3, 2e-2])
def test_the_best_rate_is_found_wherever_it_lies(best):
    board, _ = played(bowl(best, edge=100 * best))
    assert decades(suggestion(board), best) < 0.12
    assert doubts(board) == []


@given(
    best=st.floats(-4, 0),
    room=st.floats(0.3, 2.0),
    budget=st.floats(0.1, 12),
    noise=st.floats(0, 0.2),
)
@settings(max_examples=60, deadline=None)
def test_no_race_costs_more_than_its_budget(best, room, budget, noise):
    board, rounds = played(bowl(10**best, edge=10 ** (best + room), noise=noise), budget=budget)
    assert board.spent <= budget + 1e-6
    for asked in rounds:
        assert all(step in board.rules.stops for step in asked.targets.values())


@given(best=st.floats(-4, -1), budget=st.sampled_from([3.0, 5.0, 9.0]))
@settings(max_examples=20, deadline=None)
def test_no_trial_is_asked_for_what_it_has_done(best, budget):
    _, rounds = played(bowl(10**best), budget=budget)
    reached = {}
    for asked in rounds:
        for trial, step in asked.targets.items():
            assert step > reached.get(trial, 0)
            reached[trial] = step


def test_the_same_outcomes_give_the_same_decisions_wherever_it_was_cut():
    world, given_ = bowl(noise=0.1), rules()
    _, whole = played(world)
    for cut in range(1, len(whole)):
        play = race(Board(given_))
        asked = next(play)
        for expected in whole[:cut]:
            assert asked == expected
            asked = play.send(outcomes(world, asked, given_))
        assert asked == whole[cut]


def test_a_slow_starter_that_wins_in_the_end_is_not_cut():
    """At an eighth of the horizon the best rate of the end is far behind the leader."""

    def world(trial, share):
        if trial.lr > 0.5:
            return math.inf
        slow = math.exp(-share * trial.lr / 0.0008)
        floor = 0.2 + 0.5 * max(0.0, math.log10(trial.lr / 0.01))
        return floor + 1.7 * slow + 0.3 * math.log2(1 / share) * 0.05

    rates = [1e-3, 3.16e-3, 1e-2, 3.16e-2, 1e-1]
    early = min(rates, key=lambda lr: world(TrialId(lr, 0), 1 / 32))
    late = min(rates, key=lambda lr: world(TrialId(lr, 0), 1.0))
    assert early > 2 * late
    board, _ = played(world, budget=6.0)
    assert decades(suggestion(board), late) < 0.3


@pytest.mark.parametrize("start", [3.0, 30.0, 300.0])
@pytest.mark.parametrize("best", [1e-4, 1e-2])
def test_a_training_that_starts_far_above_chance_is_not_given_up_on_the_way(start, best):
    """A regression begins far from its targets, and most of the time is spent on coming near."""

    def world(trial, share):
        if trial.lr >= 30 * best:
            return math.inf if share > 0.5 else 1.5 * start
        floor = 0.2 + 0.3 * math.log10(trial.lr / best) ** 2
        return floor + start * math.exp(-10 * share * trial.lr / best)

    for budget in (4.0, 12.0):
        board, _ = played(world, budget=budget)
        assert decades(suggestion(board), best) < 0.3
        edge = board.edge()
        assert edge.low < 30 * best < edge.high
        assert edge.low > best


def test_failing_rates_cost_little():
    board, _ = played(bowl(1e-3, edge=0.05))
    failed = [t for t, stops in board.at.items() if stops[max(stops)].ended]
    assert len(failed) >= 2
    assert sum(board.reached(t) for t in failed) / board.rules.horizon < 0.5


def test_the_ladder_goes_on_where_the_best_lies_beyond_it():
    for best in (1e-7, 30.0):
        board, _ = played(bowl(best, edge=1e3 * best))
        assert decades(suggestion(board), best) < 0.2


def test_a_ladder_that_goes_on_keeps_to_half_decades():
    board = Board(rules(ladder=(1e-5, 0.5)))
    for side, steps in ((-1, [3e-6, 1e-6, 3e-7, 1e-7]), (1, [1.0, 3.0, 10.0, 30.0, 100.0])):
        for expected in steps:
            assert board.neighbour(board.ladder[0 if side < 0 else -1], side) == expected


def test_a_suggestion_that_fails_with_a_fresh_seed_moves():
    def world(trial, share):
        unlucky = trial.seed != 0 and trial.lr > 0.008
        return math.inf if unlucky else bowl(1e-2, edge=0.05)(trial, share)

    board, _ = played(world, budget=12.0)
    assert suggestion(board) < 0.008


def test_what_the_search_for_the_edge_trains_confirms_no_suggestion():
    """Fresh seeds come out worse at the best rate, and far from it too, as is to be expected."""
    plain = bowl(1e-2, edge=3.0)

    def world(trial, share):
        lucky = trial.seed == 0 or abs(math.log10(trial.lr / 1e-2)) > 0.3
        return plain(trial, share) + (0.0 if lucky else 0.3)

    board, rounds = played(world, budget=12.0)
    last = board.rules.last
    fresh = next(t.seed for asked in rounds for t in asked.targets if t.seed > 0)
    assert [t for t, at in board.at.items() if t.lr > 1 and t.seed == fresh and last in at]
    # Those at the edge come out worse by far than 0.01 does, and are no measure of it.
    assert abs(math.log10(suggestion(board) / 1e-2)) > 0.3


def test_where_everything_fails_there_is_no_suggestion():
    board, rounds = played(lambda trial, share: math.inf)
    assert suggestion(board) is None
    assert board.spent < 1
    assert min(t.lr for t in board.at) <= 1e-8
    assert len(rounds) < 10


def test_where_nothing_learns_there_is_no_suggestion():
    for budget in (2.0, 3.0, 4.0, 12.0):
        board, _ = played(lambda trial, share: CHANCE, budget=budget)
        assert suggestion(board) is None
        # A rate was trained in full to no avail: a larger budget is no remedy.
        assert board.rates(board.rules.last)
        assert conclude(board).needed is None


@pytest.mark.parametrize("side", [-1, 1])
def test_where_nothing_learns_the_ladder_has_an_end_and_the_budget_is_not_used_up(side):
    """The score never reaches chance, and is a little lower at every further rate."""
    board, _ = played(lambda trial, share: CHANCE + 2.0 ** (-side * math.log10(trial.lr)))
    assert suggestion(board) is None
    assert 1e-14 < min(board.ladder) < max(board.ladder) < 1e10
    assert board.spent < board.rules.budget / 2
    edge = board.edge()
    assert (edge.lr, edge.low, edge.high) == (None, 0.0, math.inf)


def test_a_budget_that_is_too_small_says_so():
    board, _ = played(bowl(), budget=1.0)
    assert doubts(board)
    board, rounds = played(bowl(), budget=1e-3)
    assert rounds == []
    assert suggestion(board) is None


@given(order=st.permutations(range(13)))
@settings(max_examples=10, deadline=None)
def test_permuting_the_rates_changes_nothing(order):
    rates = rules().ladder
    assert ladder_of([rates[k] for k in order]) == rates


@pytest.mark.parametrize("finer", [2, 3, 5])
def test_refining_the_rates_moves_the_answer_by_less_than_its_band(finer):
    world = bowl(4e-3, edge=0.4)
    one, _ = played(world)
    low, high = good_rates(one, suggestion(one))
    step = 6 / (12 * finer)
    fine = ladder_of([10 ** (-5 + step * k) for k in range(12 * finer + 1)])
    other, _ = played(world, ladder=fine)
    assert low.lr <= suggestion(other) <= high.lr


@given(st.lists(st.floats(1e-8, 1e3), min_size=1, max_size=30))
@example([10.0, 161.0, 402.0])
def test_a_ladder_has_its_ends_and_steps_of_about_half_a_decade(lrs):
    ladder = ladder_of(lrs)
    assert ladder[0] == min(lrs)
    assert ladder[-1] == max(lrs)
    assert list(ladder) == sorted(set(ladder))
    steps = [decades(b, a) for a, b in itertools.pairwise(ladder)]
    assert all(step < 1.6 * SPACING for step in steps)
    assert all(step > 0.6 * SPACING for step in steps[:-1])


def test_stops_wait_for_a_warm_up():
    horizon = 1000
    warm = [min(1.0, (step + 1) / 100) for step in range(horizon)]
    stops, reach = stops_of(warm)
    plain, _ = stops_of([1.0] * horizon)
    assert stops[0] > plain[0]
    assert reach[-1] == 1.0
    assert list(stops) == sorted(set(stops))
    assert reach == tuple(max(warm[:step]) for step in stops)


@given(st.integers(1, 40))
def test_even_the_shortest_training_has_stops(horizon):
    stops, reach = stops_of([1.0] * horizon)
    assert stops[-1] == horizon
    assert len(stops) == len(reach)
    assert list(stops) == sorted(set(stops))
    board, _ = played(bowl(), stops=stops, reach=reach)
    assert board.spent <= board.rules.budget + 1e-6


def test_a_seed_that_is_worse_everywhere_changes_no_rate():
    """Seeds differ in level; rates are compared within a seed."""

    def world(trial, share):
        return bowl(1e-2)(trial, share) + 0.15 * (trial.seed == 1)

    board, _ = played(world, budget=12.0)
    assert decades(suggestion(board), 1e-2) < 0.12
    assert min(response(board).values()) < 0.25


@pytest.mark.parametrize("best", [3e-4, 1e-2])
@pytest.mark.parametrize("room", [3.0, 30.0])
def test_rates_that_rest_at_chance_early_do_not_crowd_out_one_that_still_falls(best, room):
    """By the look and the first heat they stand lower than any rate that will learn."""
    world = resting(best, room * best)
    early = {lr: world(TrialId(lr, 0), 1 / 32) for lr in (best, 2 * room * best)}
    assert early[2 * room * best] < early[best]
    board, _ = played(world, budget=12.0)
    assert decades(suggestion(board), best) < 0.3


def test_where_the_rate_has_no_effect_the_ladder_does_not_go_on():
    """Whether nothing is learned or all of it, every outcome is the same to the last bit."""
    for floor in (0.2, CHANCE):
        board, rounds = played(lambda trial, share, floor=floor: floor + 0.1 * math.log2(1 / share))
        assert min(t.lr for t in board.at) == board.rules.ladder[0]
        assert max(t.lr for t in board.at) == board.rules.ladder[-1]
        assert conclude(board).status == "unresolved"
        assert len(rounds) < 12


@pytest.mark.parametrize("side", [-1, 1])
def test_what_wins_at_the_end_of_the_ladder_is_never_resolved(side):
    """A loss without a lower bound is lower the further the weights are thrown, and so on."""
    board, _ = played(lambda trial, share: -share * trial.lr ** (0.2 * side), budget=12.0)
    finding = conclude(board)
    assert finding.status == "unresolved"
    assert ("no larger rate" if side > 0 else "no smaller rate") in finding.reason
    assert finding.needed is None


def test_a_suggestion_inside_the_interval_of_the_edge_is_not_resolved():
    def world(trial, share):
        lucky = math.sin(1e4 * trial.lr + 7 * trial.seed) > 0
        near = 8e-3 < trial.lr < 0.3
        return math.inf if trial.lr >= 0.3 or (near and not lucky) else bowl(0.05)(trial, share)

    for budget in (4.0, 8.0, 12.0):
        finding = conclude(played(world, budget=budget)[0])
        assert finding.status == "unresolved" or finding.lr < finding.edge.low


def test_a_fault_that_is_not_the_rates_leaves_no_edge():
    board = Board(rules())
    ended = Outcome(3, math.inf, False, True, "a batch that is not finite", True)
    board.take({TrialId(lr, 0): {0: ended} for lr in board.rules.ladder})
    finding = conclude(board)
    assert (finding.lr, finding.edge.lr, finding.status) == (None, None, "unresolved")
    assert "a batch that is not finite" in finding.reason
    assert finding.needed is None
