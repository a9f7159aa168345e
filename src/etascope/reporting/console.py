"""The one door through which text reaches a terminal.

Names, reasons, paths and messages come from users and from study directories of strangers. Here
they are text and nothing else: no markup, no emoji codes, no control character, no line break of
their own. What draws may therefore put any of them into a `Text`, a cell or a line as it is; line
breaks that are meant are renderables of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.text import Span, Text

from etascope.words import visible


class Terminal(Console):
    """A rich console on which every text is what it says.

    >>> Terminal(width=40).print("[red]a\\x1b[2Jb[/INST] :fire:")
    [red]a\\x1b[2Jb[/INST] :fire:

    Args:
        options: those of `rich.console.Console`; markup, emoji codes and highlighting are off.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render an object; all that is printed comes by here, down to the cells of tables."""
        return super().render(_safe(renderable), options)

    def say(self, line: str = "") -> None:
        """Print a line, however long: it is broken by the terminal and by nothing else."""
        self.print(Text(visible(line)), soft_wrap=True)


class Lines:
    """Texts below each other in one cell, each of them one line.

    A table takes its time by the row and by the object: ten thousand lines in one cell are drawn
    as fast as one.
    """

    def __init__(self, texts: Iterable[str | Text]) -> None:
        self._text = Text("\n").join(_safe(Text() + text) for text in texts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        return self._text.__rich_console__(console, options)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return self._text.__rich_measure__(console, options)


def _safe(renderable: Any) -> Any:
    """A text, or what will become one, with every character visible; anything else as it is."""
    if isinstance(renderable, str):
        return visible(renderable)
    if not isinstance(renderable, Text) or renderable.plain.isprintable():
        return renderable
    pieces = [visible(character) for character in renderable.plain]
    places = [0, *accumulate(map(len, pieces))]
    spans = [
        Span(places[s.start], places[min(s.end, len(pieces))], s.style) for s in renderable.spans
    ]
    seen = renderable.blank_copy("".join(pieces))
    seen.spans = spans
    return seen
