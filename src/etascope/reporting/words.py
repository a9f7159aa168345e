"""How a report writes numbers: as the reasons of verdicts do, and time spans besides."""

from __future__ import annotations

from etascope.words import counted, listed, number, rate, share

__all__ = ["counted", "duration", "listed", "number", "rate", "share"]


def duration(seconds: float) -> str:
    """A time span in its two largest units.

    >>> duration(4.2), duration(125), duration(300), duration(7260)
    ('4 s', '2 min 5 s', '5 min', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 3600:
        parts = [(whole // 60, "min"), (whole % 60, "s")]
    else:
        parts = [(whole // 3600, "h"), (whole % 3600 // 60, "min")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"
