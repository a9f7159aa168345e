"""The answer of a study in sentences: which rate to use, what else is as good, where it fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from etascope.diagnosis.chance import beats_untrained_only
from etascope.diagnosis.statistics import average
from etascope.diagnosis.verdict import TOLERANCE
from etascope.records import History, Verdict
from etascope.reporting import found
from etascope.reporting.words import counted, listed, number, rate, share
from etascope.study import Study

FAILED = ("diverged", "stuck")
ENDED = {  # by a cause that is not the rate
    "exception": "ended with an exception",
    "data": "ended at a batch that cannot be used at any rate",
    "worker": "ended after killing the worker three times",
}


class Answer(NamedTuple):
    """`headline` answers in one sentence, `sentences` give numbers, `caveats` what is not known."""

    headline: str
    sentences: tuple[str, ...]
    caveats: tuple[str, ...]


def answer(study: Study) -> Answer:
    """What the study says about the learning rate, with its numbers and its limits."""
    if study.finding is not None:
        said = found.sentences(study.finding, study.horizon)
        return Answer(
            found.headline(study.finding), tuple(said), (*study.notes, *_ended(study.trials))
        )
    if not any(h.step or h.failure for h in study.trials):
        return Answer("Nothing has been trained yet.", (), study.notes)
    sentences = [_fails(study), _slow(study), _unsettled(study)]
    if study.best is None:
        headline = _none_learned(study)
    else:
        headline = _use(study, study.best)
        sentences[:0] = [_best(study, study.best), _band(study)]
    return Answer(headline, tuple(s for s in sentences if s), (*study.notes, *_caveats(study)))


def _use(study: Study, best: float) -> str:
    """The headline where a rate learned, and of which rates it speaks."""
    untrained = beats_untrained_only(study.problem.chance)
    better = "does better than the untrained network"
    if len(study.lrs) == 1:
        return f"A learning rate of {rate(best)} {better if untrained else 'learns'}."
    if study.verdicts[best].provisional or not study.complete:
        headline = f"So far a learning rate of {rate(best)} leads"
    elif _rivals_paused(study, best):
        headline = f"Of the rates trained to the end, use {rate(best)}"
    else:
        headline = f"Use a learning rate of {rate(best)}"
    return f"{headline}, which {better}." if untrained else f"{headline}."


def _rivals_paused(study: Study, best: float) -> bool:
    """Whether every other rate that did not fail for good was paused before the horizon."""
    others = [v for lr, v in study.verdicts.items() if lr != best]
    rivals = [v for v in others if v.provisional or v.name not in FAILED]
    return bool(rivals) and all(v.provisional for v in rivals)


def _none_learned(study: Study) -> str:
    names = {v.name for v in study.verdicts.values()}
    if any("possible" in v.evidence for v in study.verdicts.values()):
        return "No rate was shown to learn: the held-out examples are too few to tell."
    if names <= set(FAILED):
        return "Every rate failed: try smaller ones."
    if not names & set(FAILED) and all(h.failure is None for h in study.trials):
        return "No rate has learned yet: try larger ones, or train longer."
    return "No rate has learned yet."


def _best(study: Study, best: float) -> str:
    """The held-out numbers of the best rate, over its seeds."""
    step = study.verdicts[best].step
    found = [h.evaluation("valid", step) for h in study.trials if h.trial.lr == best]
    found_test = [h.evaluation("test") for h in study.trials if h.trial.lr == best]
    losses = [e.loss for e in found if e is not None]
    scores = [e.metric for e in found if e is not None and e.metric is not None]
    tests = [e.metric for e in found_test if e is not None and e.metric is not None]
    if not losses:
        return ""
    text = f"After {counted(step, 'step')} at {rate(best)} the held-out loss is {spread(losses)}"
    if scores:
        text += f" and {study.problem.metric} {spread(scores, metric=True)}"
    if len(losses) > 1:
        text += f" (mean and range of {counted(len(losses), 'seed')})"
    chance = study.problem.chance
    what = (
        "the untrained network has" if chance.source == "initial loss" else "knowing nothing gives"
    )
    text += f"; {what} a loss of {number(chance.loss)}."
    if tests:
        text += (
            f" On the test examples, which decided nothing, {study.problem.metric} is "
            f"{spread(tests, metric=True)}."
        )
    return text


def spread(values: list[float], *, metric: bool = False) -> str:
    """The mean, and with several values their range.

    >>> spread([0.25]), spread([1.0, 3.0])
    ('0.250', '2.00 (1.00 to 3.00)')
    """
    write = share if metric else number
    mean = write(average(values))
    return mean if len(values) == 1 else f"{mean} ({write(min(values))} to {write(max(values))})"


def _band(study: Study) -> str:
    if study.band is None or len(study.lrs) == 1:
        return ""
    low, high = study.band
    if low == high:
        return f"No other rate was shown to be as good as {rate(low)}."
    source = study.problem.chance.source
    chance = "the untrained network's loss" if source == "initial loss" else "knowing nothing"
    return (
        f"Rates from {rate(low)} to {rate(high)} are as good, within {TOLERANCE:.0%} of the "
        f"distance from {chance} to the best loss."
    )


def _fails(study: Study) -> str:
    """Where training breaks: the largest rate that holds below the smallest that fails."""
    failed = [lr for lr, v in study.verdicts.items() if v.name in FAILED]
    if not failed:
        return ""
    holds = [lr for lr, v in study.verdicts.items() if v.name not in FAILED and v.step]
    below = max([lr for lr in holds if lr < max(failed)], default=0.0)
    edge = min(lr for lr in failed if lr > below)
    where = f"At {rate(edge)}" if edge == max(study.lrs) else f"From {rate(edge)} upward"
    where += " training fails"
    if below:
        where += f"; at {rate(below)}, the next rate below, it does not"
    whole = {h.trial.lr for h in study.trials if h.target >= study.horizon}
    shown = max([lr for lr in failed if lr in whole] or failed)
    verdict = study.verdicts[shown]
    return f"{where}. At {rate(shown)}{_as_of(verdict)}: {verdict.reason}."


def _slow(study: Study) -> str:
    slow = [lr for lr, v in study.verdicts.items() if v.name == "too slow"]
    if not slow:
        return ""
    if len(slow) > 3:
        return f"Too slow: {_behind(study, max(slow))} and every smaller rate."
    return f"Too slow: {listed([_behind(study, lr) for lr in slow])}."


def _unsettled(study: Study) -> str:
    open_ = [lr for lr, v in study.verdicts.items() if v.name == "undecided"]
    if not open_ or study.best is None:
        return ""
    if len(open_) > 3:
        return f"Not settled: {counted(len(open_), 'rate')}, see the table for each."
    return f"Not settled: {listed([_behind(study, lr) for lr in open_])}."


def _behind(study: Study, lr: float) -> str:
    """A rate and how far it ended behind the one it was compared with, or else its reason."""
    verdict = study.verdicts[lr]
    gap, other = verdict.evidence.get("gap"), verdict.evidence.get("compared_with")
    if not isinstance(gap, float) or not isinstance(other, float):
        return f"{rate(lr)}{_as_of(verdict)} ({verdict.reason})"
    size = f"{number(abs(gap))} {'above' if gap > 0 else 'below'} that of {rate(other)}"
    return f"{rate(lr)} (held-out loss {size} at step {number(verdict.step)})"


def _as_of(verdict: Verdict) -> str:
    return f" as of step {number(verdict.step)}" if verdict.provisional and verdict.step else ""


def _caveats(study: Study) -> list[str]:
    caveats = _ends(study)
    provisional: dict[int, list[str]] = {}
    for lr, verdict in study.verdicts.items():
        if verdict.provisional and verdict.step:
            provisional.setdefault(verdict.step, []).append(rate(lr))
    for step, lrs in sorted(provisional.items()):
        which = listed(lrs) if len(lrs) < 7 else counted(len(lrs), "rate")
        caveats.append(
            f"The verdict of {which} is provisional, as of step {number(step)} of "
            f"{number(study.horizon)}: training on may change it."
        )
    waiting = [h for h in study.trials if h.status in ("pending", "paused")]
    if waiting:
        caveats.append(
            f"The study is not finished: {len(waiting)} of {counted(len(study.trials), 'trial')} "
            "have not reached the step they were asked to reach."
        )
    caveats += _ended(study.trials)
    if beats_untrained_only(study.problem.chance):
        caveats.append(
            "What knowing nothing gives is not known here, only the loss of the untrained "
            "network: better than chance only means better than that."
        )
    if len(study.seeds) == 1:
        caveats.append(
            "One seed was trained. How much of this is the luck of the initial weights and of the "
            "data order it cannot say; three seeds or more would."
        )
    return caveats


def _ended(trials: Sequence[History]) -> list[str]:
    """The trials that ended early for a cause that is not the rate, a caveat for each cause."""
    caveats = []
    for cause, words in ENDED.items():
        found = [(h.trial, f) for h in trials if (f := h.failure) and f.cause == cause]
        if found:
            trial, first = found[0]
            caveats.append(
                f"{counted(len(found), 'trial')} {words}, the first at {trial}: {first.message}."
            )
    skipping = [h for h in trials if h.skipped]
    if skipping:
        most = max(skipping, key=lambda h: h.skipped)
        caveats.append(
            f"{counted(len(skipping), 'trial')} skipped batches that could not be used at any "
            f"rate, the most at {most.trial}: {most.skipped} of {most.skipped + most.step}."
        )
    return caveats


def _ends(study: Study) -> list[str]:
    """Whether better rates may lie beyond the ones that were tried."""
    if study.best is None:
        return []
    if len(study.lrs) == 1:
        return ["Only this rate was trained: nothing is known of any other."]
    for end, word in ((study.lrs[0], "smallest"), (study.lrs[-1], "largest")):
        if study.best == end:
            return [
                f"{rate(end)} is the {word} rate that was trained: beyond it may be better ones."
            ]
    return []
