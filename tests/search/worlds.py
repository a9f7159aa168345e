"""Worlds in which learning rates do what a formula says, for races that train nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

from etascope.plan import logspace
from etascope.records import TrialId
from etascope.search.board import Board, Outcome, Rules
from etascope.search.race import Round, race, stops_of

CHANCE = 2.0
World = Callable[[TrialId, float], float]  # (trial, share of the horizon) -> held-out loss


def rules(**changes) -> Rules:
    stops, reach = stops_of([1.0] * 320)
    given = {
        "ladder": logspace(1e-5, 10, 13),
        "stops": stops,
        "reach": reach,
        "budget": 8.0,
        "chance": CHANCE,
    }
    return Rules(**{**given, **changes})


def bowl(best=1e-2, edge=1.0, *, noise=0.0, bend=0.3) -> World:
    """Slow starters catch up, the best rate is the same at all times but early, all break past
    the edge; `noise` is the effect of a seed on a rate."""

    def world(trial: TrialId, share: float) -> float:
        if trial.lr >= edge:
            return math.inf
        distance = math.log10(trial.lr / best)
        floor = 0.2 + bend * distance**2
        luck = noise * math.sin(12.9898 * trial.seed + 78.233 * distance)
        slow = 1.8 * math.exp(-share * 60 * trial.lr / best)
        return min(CHANCE + 0.01, floor + luck + slow + 0.1 * math.log2(1 / share))

    return world


def resting(best=1e-2, edge=0.1, *, start=20.0) -> World:
    """Past the edge the network answers a constant and rests at chance, early; below it falls from
    a start far above chance, and slowly."""

    def world(trial: TrialId, share: float) -> float:
        if trial.lr >= 30 * edge:
            return math.inf
        if trial.lr >= edge:
            return CHANCE + 0.001 * math.log10(trial.lr / edge)
        floor = 0.2 + 0.3 * math.log10(trial.lr / best) ** 2
        return floor + start * math.exp(-12 * share * trial.lr / best)

    return world


def outcomes(world: World, asked: Round, given: Rules) -> dict[TrialId, dict[int, Outcome]]:
    """What training would give for a round."""
    found: dict[TrialId, dict[int, Outcome]] = {}
    for trial, target in asked.targets.items():
        stops = found.setdefault(trial, {})
        for stop, step in enumerate(given.stops):
            if step > target:
                break
            loss = world(trial, step / given.horizon)
            ended = not math.isfinite(loss)
            failed = ended or loss >= 0.98 * CHANCE
            stops[stop] = Outcome(min(step, 7) if ended else step, loss, failed, ended)
            if ended:
                break
    return found


def played(world: World, **changes) -> tuple[Board, list[Round]]:
    """A whole race and its rounds."""
    given = rules(**changes)
    board, rounds = Board(given), []
    play = race(board)
    try:
        asked = next(play)
        while True:
            rounds.append(asked)
            asked = play.send(outcomes(world, asked, given))
    except StopIteration:
        return board, rounds
