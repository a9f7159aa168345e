"""What a race has seen so far, and what follows from it for a single rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from etascope.records import TrialId
from etascope.schema import Natural, PositiveFloat, decode
from etascope.search.edge import LARGEST, SMALLEST, Edge, Sign, find_edge

OPTIMISTIC, PESSIMISTIC = 1.5, 0.5  # times the fall per doubling of time that was last seen
FULL = 0.99  # of the peak: the schedule has reached it
IDENTICAL = 1e-9  # relative: scores that differ by less are the same up to rounding
ABOVE = 0.1  # of chance: a start that lies higher lies well above it
PATIENCE = 3  # rates beyond the ladder that are tried although nothing is gained by them
GAIN = 0.01  # of a score: what one more rate beyond the ladder is to gain while none has learned
SPACING = 0.5  # decades between two rates of a ladder that is filled or goes on: 1, 3, 10
BEYOND = 8  # decades that a ladder may go on beyond its ends


class Outcome(NamedTuple):
    """A trial at the step it was asked to reach, or where it ended before.

    `score` is lower for better, infinite where the training ended; `failed` says that it is not
    shown to be better than chance, `ended` that it cannot go on, and `why` for what reason. A
    `fault` is an end that the rate has no part in: every other rate meets it too.
    """

    step: int
    score: float
    failed: bool
    ended: bool
    why: str = ""
    fault: bool = False


@dataclass(frozen=True)
class Rules:
    """What a race rests on.

    Attributes:
        ladder: the rates to look at first, ascending.
        stops: the steps at which rates are compared, ascending; the last is the horizon.
        budget: what may be spent, in full trainings.
        chance: the score of knowing nothing.
        tolerance: the share of chance minus best by which a rate may be worse and still be good.
        reach: how much of the full rate the schedule has reached by each stop, ascending to 1.
        seed: the first seed; fresh ones count on from it.
        objective: what is scored: the held-out `loss`, or the `metric`.
        higher_is_better: whether a larger metric is the better one; scores are its negative then.
    """

    ladder: tuple[PositiveFloat, ...]
    stops: tuple[Natural, ...]
    budget: PositiveFloat
    chance: float
    tolerance: PositiveFloat = 0.02
    reach: tuple[float, ...] = ()
    seed: Natural = 0
    objective: str = "loss"
    higher_is_better: bool = True

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Rules:
        """The rules that a journal holds; raises ValueError for others."""
        rules = decode(cls, record)
        if rules.objective not in ("loss", "metric"):
            raise ValueError("the objective of a race is neither loss nor metric")
        for name in ("ladder", "stops", "reach"):
            values = getattr(rules, name)
            if not values or list(values) != sorted(values):
                raise ValueError(f"the {name} of a race is empty, or does not ascend")
        if len(rules.reach) != len(rules.stops):
            raise ValueError("a race has as many stops as shares of the full rate")
        return rules

    @property
    def sign(self) -> int:
        """What turns a value that is measured into a score, and a score into that value."""
        return -1 if self.objective == "metric" and self.higher_is_better else 1

    @property
    def horizon(self) -> int:
        """The steps of a full training."""
        return self.stops[-1]

    @property
    def last(self) -> int:
        """The number of the last stop."""
        return len(self.stops) - 1

    @property
    def peak(self) -> int:
        """The first stop after the look by which the schedule has reached the full rate."""
        past = (stop for stop in range(1, self.last) if self.reach[stop] >= FULL)
        return next(past, self.last)

    def share(self, stop: int) -> float:
        """The share of the horizon that a stop is."""
        return self.stops[stop] / self.horizon


class Board:
    """The outcomes of a race so far, and what follows from them."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.ladder = list(rules.ladder)
        self.at: dict[TrialId, dict[int, Outcome]] = {}

    def take(self, outcomes: Mapping[TrialId, Mapping[int, Outcome]]) -> None:
        """Note the outcomes of a round; a trial that ended stands there for good."""
        for trial, found in outcomes.items():
            stops = self.at.setdefault(trial, {})
            stops |= found
            last = stops[max(stops)]
            if last.ended:
                stops |= dict.fromkeys(range(max(stops), self.rules.last + 1), last)

    # What was seen ----------------------------------------------------------------------------

    def outcome(self, lr: float, stop: int, seed: int | None = None) -> Outcome | None:
        """Where a trial stood at a stop; None if it was not there."""
        trial = TrialId(lr, self.rules.seed if seed is None else seed)
        return self.at.get(trial, {}).get(stop)

    def score(self, lr: float, stop: int, seed: int | None = None) -> float:
        """The score of a trial at a stop; infinite if it was not there."""
        found = self.outcome(lr, stop, seed)
        return math.inf if found is None else found.score

    def rates(self, stop: int, seed: int | None = None) -> list[float]:
        """The rates that were at a stop, ascending."""
        seed = self.rules.seed if seed is None else seed
        return sorted(t.lr for t, stops in self.at.items() if t.seed == seed and stop in stops)

    def leader(self, stop: int) -> float | None:
        """The rate with the lowest score at a stop; None if none has a finite one."""
        rates = [lr for lr in self.rates(stop) if math.isfinite(self.score(lr, stop))]
        return min(rates, key=lambda lr: self.score(lr, stop), default=None)

    def furthest(self, lr: float, seed: int | None = None) -> int | None:
        """The last stop that a trial was at; None if it has not begun."""
        trial = TrialId(lr, self.rules.seed if seed is None else seed)
        return max(self.at.get(trial, {}), default=None)

    def neighbour(self, lr: float, side: int) -> float | None:
        """The next rate of the ladder, which goes on beyond its ends in half decades: 1, 3, 10.

        None where that would be too far beyond, or where the rates at the end show that there is
        nothing to find.
        """
        place = self.ladder.index(lr) + side
        if 0 <= place < len(self.ladder):
            return self.ladder[place]
        power = SPACING * round(math.log10(lr) / SPACING + side)
        if not SMALLEST < power < LARGEST:
            return None
        further = float(f"{10**power:.1g}")
        if max(self.rules.ladder[0] / further, further / self.rules.ladder[-1]) > 10.0**BEYOND:
            return None
        if not self._leads_on(side):
            return None
        self.ladder.insert(0 if side < 0 else len(self.ladder), further)
        return further

    def neighbours(self, lr: float) -> list[float]:
        """The rates on both sides of one, the lower first."""
        found = [self.neighbour(lr, side) for side in (-1, 1)]
        return [rate for rate in found if rate is not None]

    def _leads_on(self, side: int) -> bool:
        """Whether the outermost rates on a side are a reason to go on beyond them.

        They are none where they came out the same, as they do where the rate has no effect. While
        nothing has learned, a few more rates are tried; after them each has to gain something, or
        more than the one before it did, as it does where gradients are tiny.
        """
        inward = self.ladder if side < 0 else self.ladder[::-1]
        tried = [lr for lr in inward if self.furthest(lr) is not None][:3]
        common = min((self.furthest(lr) or 0 for lr in tried), default=0)
        scores = [self.score(lr, common) for lr in tried]
        if len(scores) < 2 or not all(map(math.isfinite, scores)):
            return True
        gain, *before = (inner - outer for outer, inner in itertools.pairwise(scores))
        scale = max(map(abs, scores))
        if abs(gain) <= IDENTICAL * scale:
            return False
        beyond = sum(not self.rules.ladder[0] <= lr <= self.rules.ladder[-1] for lr in tried)
        accelerates = bool(before) and gain > 2 * max(0.0, before[0])
        return self.anything_learned or beyond < PATIENCE or gain > GAIN * scale or accelerates

    @property
    def anything_learned(self) -> bool:
        """Whether any training did better than chance at its last stop."""
        last = (stops[max(stops)] for stops in self.at.values())
        return any(not (outcome.failed or outcome.ended) for outcome in last)

    @property
    def fault(self) -> Outcome | None:
        """The end of a training that the rate has no part in; None if there is none."""
        ends = (at[max(at)] for at in self.at.values())
        return next((end for end in ends if end.fault), None)

    @property
    def start(self) -> float:
        """Where training starts, as far as is known: chance, or above it.

        The lowest rate has hardly moved by the end of the look.
        """
        lowest = self.score(self.ladder[0], 0)
        return max(self.rules.chance, lowest) if math.isfinite(lowest) else self.rules.chance

    def falls(self, lr: float, stop: int) -> tuple[float, float]:
        """How far the score fell per doubling of time: since the stop before, and on average.

        What lies above the start is a spike, and no measure of how fast a training learns.
        """
        at = self.at[TrialId(lr, self.rules.seed)]
        steps, start = self.rules.stops, self.start
        before = sorted(s for s in at if s < stop)
        if not before:
            return 0.0, 0.0
        last, mean = (
            max(0.0, min(at[earlier].score, start) - min(at[stop].score, start))
            / math.log2(steps[stop] / steps[earlier])
            for earlier in (before[-1], before[0])
        )
        return last, mean

    def rests(self, lr: float, stop: int) -> bool:
        """Whether a training that did no better than chance has come to rest there.

        It has where its score is about chance, although training starts well above it, or where
        it does not fall any more.
        """
        score, chance = self.score(lr, stop), self.rules.chance
        unit = max(abs(chance), self.start - chance)
        fallen = self.start - chance > ABOVE * abs(chance) and score < chance + ABOVE * unit
        return fallen or self.falls(lr, stop)[0] < GAIN * unit

    def projected(self, lr: float, stop: int, falls: float) -> float:
        """The score at the horizon if it goes on falling, `falls` times as steep as so far.

        The optimist (`falls` above 1) takes the steeper of the two falls, the pessimist the
        flatter one. A rate that was at one stop only has shown none: an optimist knows no bound.
        """
        score = self.score(lr, stop)
        if stop == self.rules.last or not math.isfinite(score):
            return score
        if falls > 1 and len(self.at[TrialId(lr, self.rules.seed)]) == 1:
            return -math.inf
        fall = (max if falls > 1 else min)(self.falls(lr, stop))
        return score - falls * fall * math.log2(1 / self.rules.share(stop))

    def hopeless(self, lr: float) -> bool:
        """Whether a rate need not be trained on: it ended, or even optimism does not save it.

        It is measured against the best rate at the horizon, and before one is there against a
        pessimist's view of the leader at its own stop; as long as no rate there is better than
        chance, none is hopeless.
        """
        stop, best = self.furthest(lr), self.leader(self.rules.last)
        if stop is None:
            return False
        score = self.score(lr, stop)
        if not math.isfinite(score) or stop == 0:
            return not math.isfinite(score)
        if best is not None:
            bar = min(self.score(best, self.rules.last), self.rules.chance)
        else:
            leader = self.leader(stop)
            assert leader is not None
            if self.score(leader, stop) >= self.rules.chance:
                return False
            bar = self.projected(leader, stop, PESSIMISTIC)
        return self.projected(lr, stop, OPTIMISTIC) > bar

    # What it costs ----------------------------------------------------------------------------

    def reached(self, trial: TrialId) -> int:
        """The step that a trial has reached."""
        return max((outcome.step for outcome in self.at.get(trial, {}).values()), default=0)

    def price(self, trial: TrialId, stop: int) -> float:
        """What taking a trial to a stop costs at most, in full trainings."""
        if any(outcome.ended for outcome in self.at.get(trial, {}).values()):
            return 0.0
        return max(0, self.rules.stops[stop] - self.reached(trial)) / self.rules.horizon

    @property
    def spent(self) -> float:
        """What was trained, in full trainings."""
        return sum(self.reached(trial) for trial in self.at) / self.rules.horizon

    @property
    def left(self) -> float:
        """What may still be trained, in full trainings."""
        return self.rules.budget - self.spent + 1e-9

    # What is known of the edge ----------------------------------------------------------------

    def edge(self) -> Edge:
        """Where training breaks, from every trial past the peak of the schedule."""
        return find_edge(self.signs())

    @property
    def learned(self) -> int:
        """The first stop after the look by which some rate did better than chance, or the last."""
        known = (s for stops in self.at.values() for s, at in stops.items() if not at.failed)
        last = self.rules.last
        return max(min(1, last), min(known, default=last))

    @property
    def telling(self) -> int:
        """The first stop that tells of the edge: at the full rate, and where some rate learned."""
        return max(self.rules.peak, self.learned)

    def signs(self) -> list[Sign]:
        """What each trial says of the edge, by where it stands.

        A rate below the best that has not left chance yet is slow, and says nothing; nor does any
        that merely stays at chance where nothing is learned at all. As long as no rate has left
        it, and during the look, only what stands above the start has failed. Before the schedule
        has reached the full rate a trial speaks of the rate that it has reached.
        """
        rules = self.rules
        leaders = [self.leader(stop) for stop in range(rules.last + 1)]
        best = next((lr for lr in reversed(leaders) if lr is not None), 0.0)
        learned = self.anything_learned
        signs = []
        for trial, stops in self.at.items():
            stop = max(stops)
            outcome = stops[stop]
            if outcome.failed and trial.lr < best:
                continue
            if outcome.ended:
                if outcome.failed:
                    signs.append(Sign(trial.lr, 1.0, True))
            elif learned and (stop >= self.learned or outcome.score > self.start):
                signs.append(Sign(trial.lr * rules.reach[stop], rules.share(stop), outcome.failed))
        return signs
