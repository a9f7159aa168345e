"""What a race has to say: the rate to use, the band around it, and what is still open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from etascope.records import TrialId
from etascope.search.board import Board, Outcome
from etascope.search.edge import decades
from etascope.search.response import End, band, lowest
from etascope.words import counted, number, rate

FINALISTS = 3  # rates that are trained to the horizon with one seed, if the budget allows
FADE = 0.7  # of a gap between two rates that is left when time has doubled
UNSEEN = 2.0  # times the tolerance: the excess that a rate has at least that did not finish
SURE = 0.3  # of the tolerance: what the estimate of an end may use up
CLOSE = 0.06  # decades: a rate that was trained stands for a better one that lies so near


def response(board: Board) -> dict[float, float]:
    """The score of each rate at the horizon, averaged over seeds; empty where none got there.

    A trial that failed counts as chance, and so does whatever is worse. Seeds differ in level, so
    a fresh seed counts by how it compares with the first one over the rates that learned with
    both; where there are none, only what failed counts. A rate that was given up on the way is as
    much worse than the best as it was when both stood at its last stop, but for what fades with
    time.
    """
    rules, last = board.rules, board.rules.last
    cells: dict[int, dict[float, float]] = {}
    for trial, stops in board.at.items():
        if last in stops:
            cells.setdefault(trial.seed, {})[trial.lr] = capped(board, stops[last])
    ours = cells.get(rules.seed, {})
    if not ours:
        return {}
    values = {lr: [score] for lr, score in ours.items()}
    for seed, theirs in cells.items():
        shifts = [
            score - ours[lr]
            for lr, score in theirs.items()
            if lr in ours and max(score, ours[lr]) < rules.chance
        ]
        for lr, score in theirs.items():
            if seed != rules.seed and score >= rules.chance:
                values.setdefault(lr, []).append(rules.chance)
            elif seed != rules.seed and lr in ours and len(shifts) > 1:
                values[lr].append(score - sum(shifts) / len(shifts))
    found = {lr: sum(scores) / len(scores) for lr, scores in values.items()}
    leader = min(found, key=lambda lr: found[lr])
    for lr in board.rates(1):
        stop = board.furthest(lr)
        if lr not in found and stop is not None:
            before = board.score(leader, stop)
            gap = max(0.0, board.score(lr, stop) - before) if math.isfinite(before) else math.inf
            fade = FADE ** math.log2(1 / rules.share(stop))
            found[lr] = min(rules.chance, found[leader] + fade * gap)
    return found


def capped(board: Board, outcome: Outcome) -> float:
    """A score that is chance where the trial failed or is worse than that."""
    chance = board.rules.chance
    return chance if outcome.failed or not outcome.score < chance else outcome.score


def suggestion(board: Board) -> float | None:
    """The rate to use: where the response is lowest; None if no rate learned."""
    found = response(board)
    if not found or min(found.values()) >= board.rules.chance:
        return None
    best = lowest(found)
    near = min(found, key=lambda lr: abs(decades(best, lr)))
    return near if abs(decades(best, near)) < CLOSE else float(f"{best:.2g}")


def contenders_left(board: Board) -> list[float]:
    """The rates that could still be better than the best one, the more promising first.

    Where the best one learned these are neighbours of it; where it did not, all that were seen to
    do better than chance.
    """
    last, chance = board.rules.last, board.rules.chance
    leader = board.leader(last)
    if leader is None:
        return []
    if board.score(leader, last) < chance:
        around = board.neighbours(leader)
    else:
        around = [lr for lr in board.rates(0) if _seen(board, lr) < chance]
    open_ = [lr for lr in around if board.outcome(lr, last) is None and not board.hopeless(lr)]
    return sorted(open_, key=lambda lr: _seen(board, lr))


def _seen(board: Board, lr: float) -> float:
    """What a rate is expected to score, by where it stands; infinite before it began."""
    stop = board.furthest(lr)
    return math.inf if stop is None else board.projected(lr, stop, 1.0)


def good_rates(board: Board, lr: float) -> tuple[End, End]:
    """The ends of the band around the suggestion: what is worse by the tolerance at most.

    Only rates that were trained to the horizon can be in it.
    """
    found = response(board)
    least = min(found.values())
    allowed = board.rules.tolerance * (board.rules.chance - least)
    trained = set(board.rates(board.rules.last))
    scores = {
        other: score if other in trained else max(score, least + UNSEEN * allowed)
        for other, score in found.items()
    }
    return band(scores, lr, least + SURE * allowed)


class Doubt(NamedTuple):
    """Why the suggestion is not settled, and what settling it would cost in full trainings."""

    reason: str
    price: float


def doubts(board: Board) -> list[Doubt]:
    """What is still open about the suggestion; empty where it is settled.

    It is settled once every neighbour that could be better was trained to the horizon, and fresh
    seeds trained with the suggestion come out as the response says, within the tolerance.
    """
    lr, last, first = suggestion(board), board.rules.last, board.rules.seed
    found = [
        Doubt(f"{rate(other)} could still be better", board.price(TrialId(other, first), last))
        for other in contenders_left(board)
    ]
    if lr is None:
        price = 0.0 if board.rates(last) else 1.0
        return [*found, Doubt("no rate at the horizon did better than chance", price)]
    edge = board.edge()
    if edge.lr is not None and lr >= edge.low:
        found.append(Doubt(f"training may break at {rate(lr)} already", board.rules.share(1)))
    if (end := _ladder_end(board)) is not None:
        found.append(Doubt(f"{end} was trained, so a better one may lie there", 0.0))
    seeds = {t.seed for t, stops in board.at.items() if t.lr == lr and last in stops} - {first}
    if not seeds:
        fresh = min(board.price(TrialId(lr, seed), last) for seed in (first + 1, first + 2))
        return [*found, Doubt("no fresh seed confirms it yet", fresh)]
    expected = response(board)
    least = min(expected.values())
    allowed = board.rules.tolerance * (board.rules.chance - least)
    excess = [_excess(board, lr, seed, expected) for seed in sorted(seeds)]
    mean = sum(excess) / len(excess)
    if mean > allowed:
        reason = (
            f"with {counted(len(seeds), 'fresh seed')} it came out {number(mean)} worse than "
            f"expected, where {number(allowed)} counts as equal"
        )
        found.append(Doubt(reason, FINALISTS * 1.0))
    return found


def _ladder_end(board: Board) -> str | None:
    """In words, where the best rate lies at an end of all that were tried; else None."""
    leader = board.leader(board.rules.last)
    assert leader is not None
    rates = [lr for lr in board.ladder if board.furthest(lr) is not None]
    if rates[0] < leader < rates[-1]:
        return None
    return (
        f"{rate(leader)} is the best, and no {'smaller' if leader == rates[0] else 'larger'} rate"
    )


def _excess(board: Board, lr: float, seed: int, expected: Mapping[float, float]) -> float:
    """How much worse a seed came out than expected, beside what it does to other rates too.

    Of the others only those count of which the first seed says what is to be expected.
    """
    last = board.rules.last
    known = set(board.rates(last))

    def gap(lr: float) -> float:
        outcome = board.outcome(lr, last, seed)
        assert outcome is not None
        return capped(board, outcome) - expected.get(lr, min(expected.values()))

    others = [gap(other) for other in board.rates(last, seed) if other != lr and other in known]
    return gap(lr) - (sum(others) / len(others) if others else 0.0)
