"""The race of `find`: which rate is trained how far, and which is given up.

Real trainings run to the user's own horizon, paired by seed, and stop on the way to be compared.
A short look over the whole ladder finds where to begin; heats then carry the promising rates on
from stop to stop, resumed and never begun again. A rate is given up when even an optimistic
continuation of its own curve ends worse than a pessimistic one of the leader: small rates start
slowly and still fall when others are done, so their own fall is what they are judged by.

The race is a generator of rounds. What it asks for next depends on nothing but the rules and the
outcomes that it was sent, so a race that was cut off is replayed from the records.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import NamedTuple

from etascope.plan import logspace
from etascope.records import TrialId
from etascope.search.answer import FINALISTS, contenders_left, doubts, suggestion
from etascope.search.board import SPACING, Board, Outcome
from etascope.search.edge import decades
from etascope.words import rate

SHARES = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of a training, at which rates are compared
SEEDS = 5  # at most, however large the budget
NARROW = 0.5  # decades: an edge known that well is settled
NEAR = 0.15  # decades: trials that speak of the same place
LEAST = 3  # steps of the look
CLOSEST = 0.8  # of the spacing of a ladder: rates that lie closer are left out
EDGE_TRIALS = 16  # at most, to place the edge
EDGE_BEYOND = 4  # of these at most above all rates that were tried: two decades
LOWER = 2  # smaller rates at most that heats are given because their leader rests at chance
BELOW = "the leader rests at chance, and a smaller rate may still be falling"


class Round(NamedTuple):
    """Trials, the step that each is to reach, and why they are trained."""

    targets: dict[TrialId, int]
    why: str


def stops_of(course: Sequence[float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Where rates are compared, and how much of its peak the rate has reached by then.

    A stop lies at a share of the horizon, but not before the same share of what the schedule sums
    up to: during a warm-up little is learned, and nothing of the rate to come.

    Args:
        course: [step] the rate as a share of its peak.

    Returns:
        The steps, ascending, and the largest share of the peak up to each.

    Example:
        >>> stops_of([1.0] * 640)
        ((20, 80, 160, 320, 640), (1.0, 1.0, 1.0, 1.0, 1.0))
    """
    horizon, summed = len(course), list(itertools.accumulate(course))
    stops = {horizon}
    for share in SHARES[:-1]:
        learned = bisect.bisect_left(summed, share * summed[-1]) + 1
        stops.add(min(horizon, max(LEAST, learned, math.ceil(share * horizon))))
    ordered = tuple(sorted(stops))
    return ordered, tuple(max(course[:step]) for step in ordered)


def ladder_of(lrs: Iterable[float]) -> tuple[float, ...]:
    """The rates to begin with: those given, but about half a decade apart.

    Of rates that lie closer some are left out, between rates that lie further apart some are put
    in; the lowest and the highest stay.

    Example:
        >>> ladder_of([1.0, 0.01])
        (0.01, 0.0316228, 0.1, 0.316228, 1.0)
    """
    ordered = sorted(lrs)
    kept = ordered[:1]
    for lr in ordered[1:]:
        if decades(kept[-1], lr) >= CLOSEST * SPACING:
            kept.append(lr)
    if kept[-1] != ordered[-1]:
        kept = [*kept[: max(1, len(kept) - 1)], ordered[-1]]
    ladder = kept[:1]
    for low, high in itertools.pairwise(kept):
        count = max(1, round(decades(low, high) / SPACING))
        ladder += logspace(low, high, count + 1)[1:]
    return tuple(ladder)


Outcomes = Mapping[TrialId, Mapping[int, Outcome]]  # of each trial, at each stop up to its target
Play = Generator[Round, Outcomes]


def race(board: Board) -> Play:
    """Play a race.

    Args:
        board: an empty one; it holds all outcomes in the end.

    Yields:
        What is to be trained, which never costs more than the budget. Send the outcomes.
    """
    yield from _look(board)
    if board.leader(0) is None:
        return
    lower = LOWER
    for stop in range(1, board.rules.last + 1):
        lower -= yield from _heat(board, stop, lower)
    yield from _bracket(board)
    yield from _confirm(board)


def _train(
    board: Board, lrs: Sequence[float], stop: int, why: str, seed: int | None = None
) -> Play:
    """Take rates to a stop, as many of them as there is budget for, in the order given."""
    seed = board.rules.seed if seed is None else seed
    targets, price = {}, 0.0
    for trial in (TrialId(lr, seed) for lr in dict.fromkeys(lrs)):
        price += board.price(trial, stop)
        if price > board.left:
            break
        if board.outcome(trial.lr, stop, seed) is None:
            targets[trial] = board.rules.stops[stop]
    if targets:
        board.take((yield Round(targets, why)))


def _look(board: Board) -> Play:
    """A few steps over the whole ladder: every decade of it, then around the best.

    Where the best lies at the end of the ladder, the ladder goes on, and downward where every rate
    failed and not only raised; but not without end, since there may be nothing to learn.
    """
    yield from _train(board, [*board.ladder[::2], board.ladder[-1]], 0, "a look over the ladder")
    while board.leader(0) is None and any(at[0].failed for at in board.at.values()):
        between = board.neighbour(board.ladder[0], -1)
        lower = None if between is None else board.neighbour(between, -1)
        if lower is None:
            return
        yield from _train(board, [lower], 0, "a look further down, since every rate failed")
    while (leader := board.leader(0)) is not None:
        new = [lr for lr in board.neighbours(leader) if board.outcome(lr, 0) is None]
        yield from _train(board, new, 0, f"a look around {rate(leader)}")
        if all(board.outcome(lr, 0) is None for lr in new):
            return


def _heat(board: Board, stop: int, lower: int) -> Generator[Round, Outcomes, int]:
    """Carry the promising rates on to a stop, and follow the leader if it is at their border.

    Args:
        board: of the race.
        stop: the number of the stop.
        lower: smaller rates that may be tried because the leader rests at chance.

    Returns:
        How many of these were.
    """
    contenders = _contenders(board, stop)
    count = _affordable(board, contenders, stop)
    if stop == board.rules.last and not board.anything_learned:
        count = min(count, FINALISTS)
    share = f"{100 * board.rules.share(stop):.3g} %"
    yield from _train(board, contenders[:count], stop, f"a heat to {share} of the horizon")
    below = 0
    while stop < board.rules.last and (beyond := _beyond(board, stop)) is not None:
        lr, why = beyond
        # It must leave enough to train a rate to the horizon.
        price = board.price(TrialId(lr, board.rules.seed), stop) + 1 - board.rules.share(stop)
        if (why is BELOW and below == lower) or price > board.left:
            break
        below += why is BELOW
        yield from _train(board, [lr], stop, why)
    return below


def _beyond(board: Board, stop: int) -> tuple[float, str] | None:
    """The rate to follow the leader of a heat to, and why; None where the heat has a bottom.

    A rate may have thrown the network into a state that answers a constant. It stands at chance
    early, where rates that still fall stand above it, and never leaves it: such a leader leads
    nowhere, and smaller rates are given the time to overtake it.
    """
    leader = board.leader(stop)
    if leader is None:
        return None
    rates, outcome = board.rates(stop), board.outcome(leader, stop)
    assert outcome is not None
    side = -1 if leader == rates[0] else 1 if leader == rates[-1] else 0
    why = f"{rate(leader)} leads at the border of the heat"
    if outcome.failed and board.rests(leader, stop):
        side, why = -1, BELOW
    beyond = board.neighbour(rates[0] if side < 0 else rates[-1], side) if side else None
    return None if beyond is None or board.hopeless(beyond) else (beyond, why)


def _contenders(board: Board, stop: int) -> list[float]:
    """The rates that deserve the next stop, the most promising first."""
    before = stop - 1
    leader = board.leader(before)
    if leader is None:
        return []
    if before == 0:
        # The look is too short for more than to say where to begin. A larger rate that stands
        # above chance while others are below it is on its way out.
        chance = board.rules.chance
        around = [leader, *board.neighbours(leader)]
        learned = board.score(leader, 0) < chance
        return [lr for lr in around if lr <= leader or not learned or board.score(lr, 0) <= chance]
    rates = [lr for lr in board.rates(before) if not board.hopeless(lr)]
    return sorted(rates, key=lambda lr: (board.projected(lr, before, 1.0), lr))


def _affordable(board: Board, contenders: Sequence[float], stop: int) -> int:
    """How many may go on, so that as many finalists as possible can be paid for to the end."""
    rest = 1 - board.rules.share(stop)
    for finalists in range(FINALISTS, 0, -1):
        for count in range(len(contenders), 0, -1):
            trials = (TrialId(lr, board.rules.seed) for lr in contenders[:count])
            price = sum(board.price(trial, stop) for trial in trials)
            if count < min(finalists, len(contenders)):
                break
            if price + min(count, finalists) * rest <= board.left:
                return count
    return 1


def _bracket(board: Board) -> Play:
    """Train the neighbours of the best to the horizon, until it lies between two worse ones."""
    last = board.rules.last
    while open_ := contenders_left(board):
        known = len(board.rates(last))
        why = f"{rate(open_[0])} could still be better than the leader"
        yield from _train(board, open_[:1], last, why)
        if len(board.rates(last)) == known:
            return


def _confirm(board: Board) -> Play:
    """A fresh seed for the suggestion, then the edge, then more seeds, while any of it is open."""
    first = board.rules.seed
    if suggestion(board) is None:
        return
    yield from _fresh(board, first + 1)
    yield from _place_edge(board)
    for seed in range(first + 1, first + SEEDS):
        best = suggestion(board)
        if best is None or not doubts(board):
            return
        rates = sorted(board.rates(board.rules.last), key=lambda lr: abs(decades(best, lr)))
        why = f"fresh seed {seed} for the rates around {rate(best)}"
        yield from _train(board, rates[:FINALISTS], board.rules.last, why, seed)
        yield from _fresh(board, seed)


def _fresh(board: Board, seed: int) -> Play:
    """Train the suggestion with a fresh seed, to the last stop that can be paid for.

    Where it fails, the suggestion moves, and is trained again.
    """
    before = None
    while (lr := suggestion(board)) is not None and lr != before:
        trial, before = TrialId(lr, seed), lr
        stops = range(board.rules.last, board.telling - 1, -1)
        stop = next((s for s in stops if board.price(trial, s) <= board.left), None)
        if stop is not None:
            why = f"fresh seed {seed} for the suggestion, {rate(lr)}"
            yield from _train(board, [lr], stop, why, seed)


def _place_edge(board: Board) -> Play:
    """Bisect the edge with fresh seeds, at the first stop that tells of it and then at later ones.

    Above all rates that were tried there is nothing to bisect: then the ladder goes on.
    """
    rules, stop = board.rules, board.telling
    beyond = 0
    for number in range(EDGE_TRIALS):
        edge = board.edge()
        beyond += edge.lr is None
        if edge.decades <= NARROW or beyond > EDGE_BEYOND:
            return
        lr = board.neighbour(board.ladder[-1], 1) if edge.lr is None else float(f"{edge.lr:.2g}")
        if lr is None:
            return
        near = [sign for sign in board.signs() if abs(decades(lr, sign.lr)) < NEAR]
        while stop < rules.last and sum(s.share >= rules.share(stop) for s in near) >= 2:
            stop += 1
        trial = TrialId(lr, rules.seed + 1 + number % 2)
        if board.price(trial, stop) > board.left:
            return
        why = f"where training breaks, with seed {trial.seed}"
        yield from _train(board, [trial.lr], stop, why, trial.seed)
