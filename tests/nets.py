"""Small networks of every shape that a graph can have."""

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return F.relu(x + self.norm(self.conv(x)))


class Shared(nn.Module):
    """One layer, applied twice, and its weight once more by itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(self.layer(x)) @ self.layer.weight


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.high(x) if x.sum() > 0 else self.low(x)


class Named(nn.Module):
    """Takes and gives tensors by name."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)

    def forward(self, tokens, mask=None):
        hidden = self.embed(tokens) * mask
        return {"hidden": hidden, "pooled": hidden.mean(1), "length": 7}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class InPlace(nn.Module):
    """Writes into a tensor through a view of it."""

    def forward(self, x):
        total = torch.zeros(2, 3)
        total[0] = x
        row = total[1]
        row.add_(x)
        return total.sum()


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = [torch.ones(3)]  # neither parameter nor buffer

    def forward(self, x):
        return x + self.shift[0]


def scripted() -> nn.Module:
    """A part of it is TorchScript, which calls no torch function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old, and still to be met with
        inner = torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.Tanh()))
    return nn.Sequential(nn.Linear(3, 3), inner)


def cases() -> dict[str, tuple[nn.Module, Any]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "residual": (nn.Sequential(Residual(), Residual()), draw(2, 4, 5, 5)),
        "shared": (Shared(), draw(2, 3)),
        "branching": (Branching(), torch.ones(1, 2)),
        "named": (Named(), {"tokens": torch.tensor([[1, 2, 3]]), "mask": torch.ones(1, 3, 1)}),
        "lstm": (Recurrent(), draw(2, 5, 3)),
        "attention": (Attention(), draw(2, 5, 4)),
        "in place": (InPlace(), torch.ones(3)),
        "scripted": (scripted(), draw(1, 3)),
        "constant": (Constant(), torch.ones(3)),
        "transformer": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), draw(2, 3, 8)),
    }
