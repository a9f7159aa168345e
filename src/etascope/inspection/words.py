"""How shapes and counts of a graph are written for people."""

from __future__ import annotations

from etascope.inspection.graph import Tensor

PREFIXES = ("", "k", "M", "G", "T", "P")


def shape_text(tensor: Tensor) -> str:
    """A shape, and the type of its numbers where that is not float32.

    >>> shape_text(Tensor((50, 10), "float32")), shape_text(Tensor((), "int64"))
    ('[50, 10]', '[] int64')
    """
    kind = "" if tensor.dtype == "float32" else f" {tensor.dtype}"
    return f"{list(tensor.shape)}{kind}"


def short(count: float) -> str:
    """A count in three digits with a decimal prefix.

    >>> short(3274634), short(50), short(1_003_520_000)
    ('3.27M', '50', '1.00G')
    """
    if count < 1000:
        return f"{count:g}"
    power = 0
    while count >= 999.5 and power < len(PREFIXES) - 1:
        count, power = count / 1000, power + 1
    digits = max(0, 2 - (count >= 9.995) - (count >= 99.95))
    return f"{count:.{digits}f}{PREFIXES[power]}"


def flops_text(flops: int) -> str:
    """Floating point operations: `1.00 GFLOP`.

    >>> flops_text(1_003_520_000), flops_text(12)
    ('1.00 GFLOP', '12 FLOP')
    """
    text = short(flops)
    unit = text[-1] if text[-1].isalpha() else ""
    return f"{text.removesuffix(unit)} {unit}FLOP"
