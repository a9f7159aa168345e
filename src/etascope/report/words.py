"""How numbers are written for people: few digits, no scientific notation where it can be avoided.

Every function takes what may be missing or not finite, and always returns text.
"""

from __future__ import annotations

import math

MISSING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """A number in `digits` significant digits.

    >>> number(0.12345), number(31250.0), number(2.3e7), number(None), number(float("inf"))
    ('0.123', '31 250', '2.3e+07', '–', '∞')
    """
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}".replace(",", " ").replace("-", "−")
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("-", "−").replace("e−", "e-")


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

    >>> rate(0.001), rate(1e-5)
    ('0.001', '1e-5')
    """
    return f"{lr:g}".replace("e-0", "e-").replace("e+0", "e")


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
    return f"{number(count, 9)} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time span in its two largest units.

    >>> duration(4.2), duration(125), duration(7260)
    ('4 s', '2 min 5 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
