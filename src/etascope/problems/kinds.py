"""Data of kinds that look like a dataset and are none: tables, columns, lists, sparse matrices."""

from __future__ import annotations

from typing import Any

import torch

from etascope.errors import UsageError

TABLES = ("pandas", "polars", "pyarrow", "modin", "cudf")


def refuse_tables(data: Any, name: str) -> None:
    """Raise for data that would be fetched by row number and would give something else.

    Args:
        data: what was passed as `name`.
        name: train, valid or test.

    Raises:
        UsageError: for a table, a column, a sparse matrix or a tuple of lists; saying how to make
            tensors of it.
    """
    parts = data if isinstance(data, (tuple, list)) and len(data) <= 4 else [data]
    for part in parts:
        kind, room = type(part).__name__, type(part).__module__.partition(".")[0]
        if room in TABLES:
            made = "tensors with torch.tensor(x.to_numpy(), dtype=torch.float32)"
        elif room == "scipy" and hasattr(part, "toarray"):
            made = "a tensor with torch.tensor(x.toarray(), dtype=torch.float32)"
        elif isinstance(part, torch.Tensor) and part.layout is not torch.strided:
            kind, made = f"tensor of layout {part.layout}", "it dense with .to_dense()"
        else:
            continue
        raise UsageError(
            f"{name} holds a {kind}, which gives no examples by their number; make {made}, and of "
            "classes torch.int64"
        )
    if _are_columns(data):
        raise UsageError(
            f"{name} is a tuple of {len(data)} lists of {len(data[0])}, which is no tuple of "
            "tensors; make each a tensor with torch.tensor(...)"
        )


def _are_columns(data: Any) -> bool:
    """Whether it is a tuple of lists of one length, longer than the tuple: columns, no examples."""
    return (
        isinstance(data, tuple)
        and 2 <= len(data) <= 4
        and all(isinstance(part, list) for part in data)
        and len({len(part) for part in data}) == 1
        and len(data[0]) > len(data)
    )
