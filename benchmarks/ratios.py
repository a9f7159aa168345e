"""From timed rounds to the table: medians, quartiles, and ratios taken round by round.

A machine's mood changes from minute to minute and falls on all peers of a round, so speeds are
compared within a round, and the spread of those ratios says what the comparison is worth.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

TOLERANCE = 3.0  # how many times the usual last loss is still taken for the same training

Rounds = Mapping[str, Sequence[float | None]]
"""Model-steps a second of each peer, round by round; None where a round failed."""


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    q1: float
    q3: float


def spread(values: Iterable[float]) -> Spread | None:
    """Return median and quartiles, the extremes being the 0 and 1 quantiles; None of nothing."""
    known = list(values)
    if not known:
        return None
    if len(known) == 1:
        return Spread(known[0], known[0], known[0])
    q1, median, q3 = statistics.quantiles(known, n=4, method="inclusive")
    return Spread(median, q1, q3)


def ratio(rounds: Rounds, subject: str, peer: str) -> Spread | None:
    """Return how many times as fast as the peer the subject is, over the rounds that both have."""
    pairs = zip(rounds.get(subject, ()), rounds.get(peer, ()), strict=False)
    return spread(ours / theirs for ours, theirs in pairs if ours and theirs)


def summarize(rounds: Rounds, subjects: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the milliseconds a model-step, the speed and the ratios of every peer."""
    summary = {}
    for peer, speeds in rounds.items():
        known = [speed for speed in speeds if speed]
        summary[peer] = {
            "rounds": len(known),
            "model_steps_per_second": _plain(spread(known)),
            "milliseconds_a_model_step": _plain(spread(1e3 / speed for speed in known)),
            "times_as_fast": {name: _plain(ratio(rounds, name, peer)) for name in subjects},
        }
    return summary


def not_the_same_training(losses: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Return what to say of each peer whose losses are not those of the others.

    A peer that trains wrongly can be fast: its time then means nothing. The peers start from other
    random weights, so their losses only agree roughly, best at the rate that trains best.

    Args:
        losses: the last loss at each rate, by peer.
    """
    lowest = {peer: min(of_rates) for peer, of_rates in losses.items() if of_rates}
    if not lowest:
        return {}
    usual = statistics.median(lowest.values())
    return {
        peer: f"its best last loss is {best:.3g} and not about {usual:.3g}: distrust its time"
        for peer, best in lowest.items()
        if not usual / TOLERANCE < best < usual * TOLERANCE
    }


def table(
    summary: Mapping[str, Mapping[str, Any]],
    subjects: Sequence[str],
    startup: Mapping[str, float],
    remarks: Mapping[str, str],
) -> str:
    """Return the table as lines of Markdown, the slowest peer first; then remarks on peers."""

    def pace(peer: str) -> float:
        return -summary[peer]["milliseconds_a_model_step"]["median"]

    head = ["", "start-up", "ms a model-step", "model-steps/s"]
    rows = [head + [f"{name} is … times as fast" for name in subjects]]
    measured = [peer for peer in summary if summary[peer]["milliseconds_a_model_step"]]
    for peer in sorted(measured, key=pace):
        row = summary[peer]
        cells = [peer, f"{startup[peer]:.1f} s" if peer in startup else "–"]
        cells += [_text(row["milliseconds_a_model_step"]), _text(row["model_steps_per_second"])]
        ratios = row["times_as_fast"]
        cells += ["" if name == peer else _text(ratios[name]) for name in subjects]
        rows.append(cells)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    below = [f"{peer}: {remark}" for peer, remark in remarks.items()]
    return "\n".join([lines[0], rule, *lines[1:], *([""] if below else []), *below])


def _plain(value: Spread | None) -> dict[str, float] | None:
    """Return a spread as JSON values of five digits."""
    return None if value is None else {k: float(f"{v:.5g}") for k, v in value._asdict().items()}


def _text(value: Mapping[str, float] | None) -> str:
    """Return `median [q1, q3]` with three digits."""
    if value is None:
        return "–"
    median, q1, q3 = (_digits(value[key]) for key in ("median", "q1", "q3"))
    return f"{median} [{q1}, {q3}]"


def _digits(value: float) -> str:
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"
