"""The frame of a matplotlib panel: its axes, and words that are a user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from etascope.reporting.axes import Reach, log_ticks
from etascope.words import shortened, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

LONGEST = 64  # characters of a name: a longer one leaves no room for the panel
INK, MUTED, FAINT, GRID = "#16191d", "#6a717b", "#a9afb8", "#ececea"


def frame(ax: Axes, x: str, y: str) -> None:
    """The axes of a panel with little ink, and their names."""
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("#b9bdc3")
    words(ax.set_xlabel(x, color="#454b54", fontsize=9.5))
    words(ax.set_ylabel(y, color="#454b54", fontsize=9.5))
    ax.tick_params(which="both", length=0, labelsize=8.5, labelcolor="#454b54")
    ax.grid(axis="y", color=GRID, lw=0.8)
    ax.set_axisbelow(True)


def words(text: Text) -> None:
    """A text of the user's as it is, where matplotlib would read formulas in it."""
    text.set_parse_math(False)
    text.set_usetex(False)
    text.set_text(shortened(visible(text.get_text()), LONGEST))


def middle(ax: Axes, text: str) -> None:
    """What an empty panel says."""
    words(ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", color=MUTED))


def log_axis(ax: Axes, which: str, reach: Reach) -> None:
    """A log axis with few, plainly written ticks."""
    ticks = log_ticks(*reach.ends, 7)
    limits: Any = reach.ends
    if which == "x":
        ax.set_xscale("log")
        ax.set_xticks(ticks.values, ticks.texts)
        ax.set_xticks([], minor=True)
        ax.set_xlim(limits)
    else:
        ax.set_yscale("log")
        ax.set_yticks(ticks.values, ticks.texts)
        ax.set_yticks([], minor=True)
        ax.set_ylim(limits)


def show_reach(ax: Axes, reach: Reach) -> None:
    """The axis of the values, with what lies beyond its ends in words there."""
    if reach.log:
        log_axis(ax, "y", reach)
    else:
        ax.set_ylim(reach.ends)
    for text, place in reach.beyond:
        where: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "center"}
        ax.text(0.99, place, text, color=MUTED, fontsize=8.5, **where)
