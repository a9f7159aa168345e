"""The problem of the studies in `golden/studies_0.1`, which version 0.1 of the package wrote.

Its weights are constants and its numbers float64, so that another release of torch that draws or
rounds in another way makes the same problem.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import etascope as es

STUDIES = Path(__file__).parent / "golden" / "studies_0.1"


def line() -> es.Problem:
    """y = 3x + 1/2 for 64 points, from a weight and a bias of zero."""
    x = torch.linspace(-1, 1, 64, dtype=torch.float64)[:, None]
    y = 3 * x + 0.5

    def model() -> nn.Module:
        made = nn.Linear(1, 1, dtype=torch.float64)
        nn.init.zeros_(made.weight)
        nn.init.zeros_(made.bias)
        return made

    return es.Problem(
        model=model,
        loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        train=(x[::2], y[::2]),
        valid=(x[1::2], y[1::2]),
        batch_size=8,
        name="golden line",
    )
