"""The finding of `find` in sentences: which rate to use, how sure that is, and what it cost."""

from __future__ import annotations

import math

from etascope.reporting.words import counted, number, rate
from etascope.search.finding import Finding, Standing


def headline(finding: Finding) -> str:
    """The answer in one sentence."""
    if finding.lr is None:
        return "No learning rate can be suggested."
    if finding.status == "resolved":
        return f"Use a learning rate of {rate(finding.lr)}."
    return f"Use a learning rate of {rate(finding.lr)}, as far as is known."


def sentences(finding: Finding, horizon: int) -> list[str]:
    """The numbers behind it: band, edge, status and cost."""
    said = []
    if finding.lr is not None and finding.band is not None:
        low, high = (rate(float(f"{end:.2g}")) for end in finding.band)
        said.append(
            f"Over {counted(horizon, 'step')}, rates from {low} to {high} are as good, within "
            f"{finding.tolerance:.0%} of the distance from knowing nothing to the best "
            f"{finding.objective}."
        )
        said.append(f"{finding.note[0].upper()}{finding.note[1:]}.")
    status = f"{finding.status.capitalize()}: {finding.reason}"
    if finding.needed is not None:
        status += f"; a budget of about {finding.needed:.2g} trainings would probably settle it"
    said.append(f"{status}.")
    said.append(
        f"It cost {number(finding.cost)} full trainings, of the {finding.budget:g} allowed."
    )
    return said


def standing(finding: Finding, found: Standing) -> str:
    """What became of a rate in the race, in a few words."""
    best, (low, high) = finding.lr, finding.band or (0.0, 0.0)
    if found.lr == best:
        return "suggested"
    if low <= found.lr <= high:
        return "as good"
    learned = [other.lr for other in finding.rates if not other.failed]
    slow = found.lr < (best if best is not None else max(learned, default=0.0))
    if found.failed and (slow or learned or not math.isfinite(found.score)):
        return "too slow so far" if slow else "failed"
    if found.failed:
        return "no better than chance"
    if found.expected is None or finding.score is None:
        return "too slow" if slow and best is not None else "learns"
    behind = (found.expected - finding.score) / ((finding.chance - finding.score) or 1.0)
    # Where it is within the tolerance it may be as good, but was not shown to be.
    side = "" if behind <= finding.tolerance else "too slow: " if slow else "too high: "
    return f"{side}about {100 * behind:.2g} % worse"
