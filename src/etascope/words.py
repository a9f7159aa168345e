"""How numbers and texts are written for people.

Numbers take few digits, and no scientific notation where it can be avoided; their functions take
what may be missing or not finite, and always return text. Texts of others (names, paths, what an
exception said) are made safe to show.
"""

from __future__ import annotations

import math
import unicodedata

MISSING = "–"
THIN = "\u202f"  # between thousands; it does not break a line


def visible(text: str) -> str:
    """A text of others as one line in which every character can be seen.

    What steers a terminal or reorders a line is written as Python would write it: control
    characters, line breaks, marks of direction, characters without width, halves of a surrogate
    pair. Letters, signs and spaces of all scripts stay as they are.

    >>> print(visible("a\\x1b[31mb\\n"), visible("\\u202eevil"), visible("größe [0, 1]"))
    a\\x1b[31mb\\n \\u202eevil größe [0, 1]
    """
    if text.isprintable():
        return text
    return "".join(map(_seen, text))


def _seen(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters, for where there is no room for more.

    >>> shortened("accuracy", 8), shortened("accuracy of it", 8)
    ('accuracy', 'accurac…')
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


def number(value: float | None, digits: int = 3) -> str:
    """A number in `digits` significant digits.

    >>> number(0.12345), number(2.3), number(7), number(2.3e7), number(None), number(math.inf)
    ('0.123', '2.30', '7', '2.30e7', '–', '∞')
    >>> number(31250.0) == f"31{THIN}250"
    True
    """
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if isinstance(value, int) or 1000 <= abs(value) < 1e6:
        text = f"{value:,.0f}".replace(",", THIN)
    else:
        text = f"{value:#.{digits}g}".rstrip(".")
        text = text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return text.replace("-", "−") if value < 0 and "e" not in text else text


def share(value: float | None) -> str:
    """A metric: three decimals where it lies between 0 and 1, else like any number.

    >>> share(0.97), share(12.3456)
    ('0.970', '12.3')
    """
    if value is not None and 0 <= value <= 1:
        return f"{value:.3f}"
    return number(value)


def rate(lr: float) -> str:
    """A learning rate, as it can be typed.

    >>> rate(0.001), rate(1e-5), rate(1e300)
    ('0.001', '1e-5', '1e300')
    """
    return f"{lr:g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def listed(parts: list[str]) -> str:
    """Words joined as in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def counted(count: int, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "seed"), counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"
