"""The finding: what a race has to say to the user, worked out from the records alone.

A race is replayed over the histories of a study. What it asks for and does not find there is what
is to be trained next; where it ends, or where the records do, stands the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from etascope.diagnosis.advice import nothing_learned
from etascope.diagnosis.chance import baseline_note, failed
from etascope.diagnosis.faults import rate_independent
from etascope.errors import UsageError
from etascope.records import Chance, History, ProblemFacts, TrialId
from etascope.schema import decode
from etascope.search.answer import doubts, good_rates, response, suggestion
from etascope.search.board import Board, Outcome, Rules
from etascope.search.edge import Edge, decades
from etascope.search.race import NARROW, Round, race
from etascope.words import counted, listed, number, rate


@dataclass(frozen=True)
class Standing:
    """A rate of a race: how far it was trained, with how many seeds, and how it stands.

    `score` is the held-out loss, or the metric, by the objective of the race. `expected` is that at
    the horizon as the response has it; None where it did not get far enough to say.
    """

    lr: float
    steps: int
    seeds: int
    score: float
    failed: bool
    expected: float | None


@dataclass(frozen=True)
class Finding:
    """The answer of `find`.

    Attributes:
        lr: the rate to use; None if no rate learned.
        band: the lowest and the highest rate that are as good, or None. Trained rates bound each
            end: `band_low` and `band_high` are (outside, inside) and (inside, outside), with None
            where the band reaches the border of what was trained.
        edge: where training breaks half of the time, with a 90 % interval.
        status: `resolved`, or `unresolved` for the reason given.
        reason: what the status rests on; for `unresolved` what would settle it.
        cost: what was trained for it, in full trainings; never more than `budget`.
        budget: what might have been.
        needed: the budget that would probably settle it; None where it is settled, or where a
            larger budget would not help.
        safety: decades from the rate up to the edge; None where no edge is known.
        note: how far below the edge the rate lies, and how well that is known, in words.
        loss: the held-out loss expected at `lr`; None where the objective is the metric.
        metric: the metric expected at `lr`; None where the objective is the loss.
        chance: the loss, or the metric, of knowing nothing, by the objective.
        objective: `loss` or `metric`.
        tolerance: the share of chance minus best by which a rate in the band may be worse.
        rates: every rate that was trained, ascending.
        study: the directory of the study that it rests on.
    """

    lr: float | None
    band: tuple[float, float] | None
    band_low: tuple[float | None, float] | None
    band_high: tuple[float, float | None] | None
    edge: Edge
    status: Literal["resolved", "unresolved"]
    reason: str
    cost: float
    budget: float
    needed: float | None
    safety: float | None
    note: str
    loss: float | None
    metric: float | None
    chance: float
    objective: str
    tolerance: float
    rates: tuple[Standing, ...]
    study: str = ""

    @property
    def score(self) -> float | None:
        """What is expected at `lr`: the held-out loss, or the metric, by the objective."""
        return self.loss if self.objective == "loss" else self.metric

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain values: what `etascope find --json` prints (docs/json.md)."""
        return {**asdict(self), "edge": self.edge._asdict()}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], rules: Rules) -> Finding:
        """The finding that `to_dict` gave, after a way through strict JSON.

        Version 0.1 recorded scores that are lower for better, also those of a metric.

        Raises:
            ValueError: if it is none.
        """
        found = decode(cls, {"metric": None, **given})
        return found if "metric" in given else _natural(found, rules)


def follow(
    rules: Rules, histories: Iterable[History], chance: Chance
) -> tuple[Board, Round | None]:
    """Replay a race over records: the board, and the round that is still to be trained, if any.

    It ends where a training ended for a reason that is not its rate: no answer can rest on that,
    and every further rate would meet it too.
    """
    known = {history.trial: history for history in histories}
    board = Board(rules)
    play, reached = race(board), dict[TrialId, int]()
    try:
        asked = next(play)
        while True:
            reached |= asked.targets
            faults = _faults(_up_to(known[t], step) for t, step in reached.items() if t in known)
            outcomes = {
                trial: _outcomes(rules, known.get(trial), target, chance, faults.get(trial))
                for trial, target in asked.targets.items()
            }
            if not all(outcomes.values()):
                return board, asked
            asked = play.send(outcomes)
            if board.fault is not None:
                return board, None
    except StopIteration:
        return board, None


def _up_to(history: History, step: int) -> History:
    """What was known of a trial when it had been trained to a step only."""
    end = history.failure
    return history if end is None or end.step <= step else replace(history, failure=None)


def _faults(histories: Iterable[History]) -> dict[TrialId, str]:
    """The trials that ended for a reason that their rate has no part in, and the reason."""
    seen = list(histories)
    data = {h.trial: h.failure.message for h in seen if h.failure and h.failure.cause == "data"}
    return rate_independent(seen) | data


def _outcomes(
    rules: Rules, history: History | None, target: int, chance: Chance, fault: str | None
) -> dict[int, Outcome]:
    """Where a trial stood at each stop up to its target; empty if it was not trained so far."""
    found: dict[int, Outcome] = {}
    for stop, step in enumerate(rules.stops):
        if history is None or step > target:
            break
        end = history.failure
        if end is not None and end.step <= step:
            failure = end.cause == "non-finite" and fault is None
            why = fault or end.message
            found[stop] = Outcome(end.step, math.inf, failure, True, why, fault is not None)
            return found
        evaluation = history.evaluation("valid", step)
        if evaluation is None:
            return {}
        value = evaluation.loss if rules.objective == "loss" else evaluation.metric
        assert value is not None
        score, higher = rules.sign * value, rules.higher_is_better
        missed = failed(history, chance, step, objective=rules.objective, higher_is_better=higher)
        found[stop] = Outcome(step, score, missed, False)
    return found


def chance_score(facts: ProblemFacts, objective: str) -> float:
    """The score of knowing nothing, lower for better: a metric is negative where higher is better.

    Raises:
        UsageError: for the metric of a problem where that is not known.
    """
    if objective == "loss":
        return facts.chance.loss
    known = facts.chance.metrics or facts.chance.majority
    if not known:
        raise UsageError(
            "objective metric needs a metric of knowing nothing, which is worked out where a "
            "constant output can be measured by it; use loss"
        )
    value = known[-1][1]
    return -value if facts.higher_is_better else value


def conclude(
    board: Board, waiting: Round | None = None, *, caveat: str = "", advice: str = ""
) -> Finding:
    """What the board says, as it stands.

    Args:
        board: of a race.
        waiting: what is still to be trained, where the race was cut off.
        caveat: what a reader has to know of the baseline, to be said beside the edge.
        advice: what would help where no rate learned.
    """
    rules, lr = board.rules, suggestion(board)
    # Where a fault left no rate to suggest, what was seen before it places no edge either.
    edge = Edge(None, 0.0, math.inf) if board.fault and lr is None else board.edge()
    open_ = doubts(board)
    found = response(board)
    ends = None if lr is None else good_rates(board, lr)
    expected = None if lr is None else rules.sign * min(found.values())
    reasons = [doubt.reason for doubt in open_] if lr is not None else [_nothing(board, advice)]
    needed = math.ceil(10 * (board.spent + sum(doubt.price for doubt in open_))) / 10
    if waiting is not None:
        reasons = [f"it was stopped before it was done ({waiting.why} is next)"]
    if board.fault is not None:
        reasons = [f"a training ended for a reason that is not its rate: {board.fault.why}"]
        needed = 0.0  # no budget is a remedy for that
    settled = not reasons
    note = "; ".join(filter(None, (_safety(lr, edge), caveat if lr is not None else "")))
    return Finding(
        lr=lr,
        band=None if ends is None else (ends[0].lr, ends[1].lr),
        band_low=None if ends is None else (ends[0].outside, ends[0].inside),
        band_high=None if ends is None else (ends[1].inside, ends[1].outside),
        edge=edge,
        status="resolved" if settled else "unresolved",
        reason=_why(board, lr) if settled else listed(reasons),
        cost=board.spent,
        budget=rules.budget,
        # Where the race ended for another reason than its budget, a larger one is no remedy.
        needed=None if settled or needed <= rules.budget else needed,
        safety=None if lr is None or edge.lr is None else decades(lr, edge.lr),
        note=note,
        loss=expected if rules.objective == "loss" else None,
        metric=expected if rules.objective == "metric" else None,
        chance=rules.sign * rules.chance,
        objective=rules.objective,
        tolerance=rules.tolerance,
        rates=tuple(_standings(board, found)),
    )


def _why(board: Board, lr: float | None) -> str:
    last, first = board.rules.last, board.rules.seed
    seeds = [t.seed for t, at in board.at.items() if t.lr == lr and last in at and t.seed != first]
    rates, fresh = len(board.rates(last)), len(seeds)
    return (
        f"{counted(rates, 'rate')} trained to the horizon {'leaves' if rates == 1 else 'leave'} no "
        f"neighbour that could be better, and {counted(fresh, 'fresh seed')} "
        f"{'confirms' if fresh == 1 else 'confirm'} it"
    )


def _nothing(board: Board, advice: str) -> str:
    """Why there is no rate to suggest."""
    rules = board.rules
    if not board.at:
        return "the budget is too small for a first look over the ladder"
    if board.leader(0) is None:
        smallest = min(board.at)
        end = board.at[smallest][0]
        return f"every rate failed; the smallest, {rate(smallest.lr)}: {end.why}"
    if not board.rates(rules.last):
        return "the budget was used up before any rate was trained to the horizon"
    best = min(board.score(lr, rules.last) for lr in board.rates(rules.last))
    return (
        "no rate that was trained to the horizon was shown to do better than knowing nothing: the "
        f"best came to {number(rules.sign * best)}, and that gives "
        f"{number(rules.sign * rules.chance)}{advice and f'; {advice}'}"
    )


def _safety(lr: float | None, edge: Edge) -> str:
    if lr is None:
        return ""
    if edge.lr is None:
        return f"nothing failed up to {rate(_two(edge.low))}: no edge is known"
    known = f"the edge lies between {rate(_two(edge.low))} and {rate(_two(edge.high))} (90 %)"
    if edge.low == 0:
        known = f"the edge lies below {rate(_two(edge.high))}"
    factor = edge.lr / lr
    if factor <= 1:
        return f"training may break at this rate already: {known}"
    warning = "" if factor > 3 else "; that is close: warm up, or use the lower end of the band"
    wide = "" if edge.decades <= NARROW else ", which a larger budget would narrow"
    times = f"{factor:.2g}" if factor < 100 else number(float(f"{factor:.0f}"))
    return f"training breaks about {times} times higher: {known}{wide}{warning}"


def _two(lr: float) -> float:
    return float(f"{lr:.2g}")


def _standings(board: Board, found: Mapping[float, float]) -> Iterable[Standing]:
    sign = board.rules.sign
    for lr in sorted({trial.lr for trial in board.at}):
        trials = [trial for trial in board.at if trial.lr == lr]
        furthest = max(trials, key=lambda t: (max(board.at[t]), -t.seed))
        last = board.at[furthest][max(board.at[furthest])]
        expected = None if lr not in found else sign * found[lr]
        steps, score = board.reached(furthest), sign * last.score
        yield Standing(lr, steps, len(trials), score, last.failed, expected)


def replay(rules: Rules, histories: Iterable[History], chance: Chance, study: str = "") -> Finding:
    """The finding of a study, as far as it was trained."""
    seen = list(histories)
    board, waiting = follow(rules, seen, chance)
    advice = nothing_learned(seen, chance) if suggestion(board) is None else ""
    found = conclude(board, waiting, caveat=baseline_note(chance), advice=advice)
    return replace(found, study=study)


def _natural(found: Finding, rules: Rules) -> Finding:
    """A finding of version 0.1 with its scores in the sign of what they measure."""
    if rules.objective == "loss":
        return found

    def turned(value: float | None) -> float | None:
        return None if value is None else rules.sign * value

    rates = tuple(
        replace(s, score=rules.sign * s.score, expected=turned(s.expected)) for s in found.rates
    )
    chance = rules.sign * found.chance
    return replace(found, loss=None, metric=turned(found.loss), chance=chance, rates=rates)
