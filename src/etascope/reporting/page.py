"""What every page is made of: templates, scripts that may run by their hashes, data inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from etascope.encoding import dumps
from etascope.reporting import words
from etascope.reporting.palette import MARKS
from etascope.words import visible

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
TEMPLATES = HERE / "templates"
VENDOR = HERE / "vendor"


class Part(NamedTuple):
    """A script of the page: its text, and the hash that lets it run."""

    text: str
    allowed: str


def environment() -> Environment:
    """Jinja with the templates, filters and marks of every page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    filters: dict[str, Callable[..., Any]] = {
        "number": words.number,
        "share": words.share,
        "rate": words.rate,
        "mark": MARKS.__getitem__,
    }
    made.filters.update(filters)
    made.globals.update(number=words.number, share=words.share, marks=MARKS)
    return made


def embedded(value: Any) -> str:
    """`value` as JSON that can stand inside a script element, whatever strings it holds.

    Marks that would reorder or break a line stand in it as they are seen elsewhere.

    >>> embedded({"name": "</script>"})
    '{"name": "\\\\u003c/script>"}'
    """
    text = dumps(value).replace("<", "\\u003c")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else visible(c).replace("\\", "\\\\") for c in text)


def _shown(value: Any) -> Any:
    """A text on a page: every character of each of its lines can be seen, and none reorders it."""
    if isinstance(value, str) and not hasattr(value, "__html__") and not value.isprintable():
        return "\n".join(map(visible, value.split("\n")))
    return value


def script(path: Path) -> Part:
    """A script as a page carries it."""
    text = path.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Part(text, f"'sha256-{digest}'")
