"""Ordinary code that keeps state where a state_dict does not look."""

from __future__ import annotations

import copy
import random
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset


class Base(nn.Module):
    """A linear map of inputs [batch, 2] to [batch, 3], which others build upon."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)


class Counting(Base):
    """Weighs its output by how often it was called."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * (1 + self.calls / 10)


class Recurrent(Base):
    """Hands a hidden state from batch to batch."""

    def __init__(self):
        super().__init__()
        self.cell, self.hidden = nn.LSTMCell(2, 2), None

    def forward(self, x):
        if self.hidden is None or len(self.hidden[0]) != len(x):
            self.hidden = (torch.zeros(len(x), 2), torch.zeros(len(x), 2))
        h, c = self.cell(x, tuple(part.detach() for part in self.hidden))
        self.hidden = (h, c)
        return self.linear(x + h)


class Queue(Base):
    """Keeps the last outputs in a deque and pulls towards their mean."""

    def __init__(self):
        super().__init__()
        self.queue = deque(maxlen=3)

    def forward(self, x):
        output = self.linear(x)
        past = torch.stack([*self.queue]).mean(0) if self.queue else 0.0
        self.queue.append(output.detach().mean(0))
        return output - past


class Bank(Base):
    """A memory bank as a buffer, written by every forward pass, also an evaluation's."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bank", torch.zeros(20_000, 2))
        self.place = 0

    def forward(self, x):
        self.bank[self.place % 20_000] = x.mean(0)
        self.place += 1
        return self.linear(x + self.bank.sum(0) / 10)


class Observer(Base):
    """Follows the range of its inputs, also in evaluation."""

    def __init__(self):
        super().__init__()
        self.register_buffer("low", torch.full((2,), torch.inf))
        self.register_buffer("high", torch.full((2,), -torch.inf))

    def forward(self, x):
        self.low = torch.minimum(self.low, x.amin(0))
        self.high = torch.maximum(self.high, x.amax(0))
        return self.linear((x - self.low) / (self.high - self.low + 1))


class LateBuffer(Base):
    """Registers its buffer in the first forward pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, x):
        now = x.detach().mean(0)
        self.mean = now if self.mean is None else 0.9 * self.mean + 0.1 * now
        return self.linear(x - self.mean)


@dataclass
class Statistics:
    """A running mean and what it was made of."""

    mean: float = 0.0
    seen: int = 0
    counts: Counter = field(default_factory=Counter)


class Nested(Base):
    """Keeps objects of its own, made at once and later, and containers in containers."""

    def __init__(self):
        super().__init__()
        self.now, self.later = Statistics(), None
        self.lists = defaultdict(list)
        self.alias = self.lists

    def forward(self, x):
        if self.later is None:
            self.later = Statistics()
        for statistics in (self.now, self.later):
            statistics.seen += 1
            statistics.mean += (float(x.mean()) - statistics.mean) / statistics.seen
            statistics.counts["calls"] += 1
        self.alias["means"].append(self.now.mean)
        scale = 1 + len(self.lists["means"]) / 10 + self.later.mean + self.now.counts["calls"] / 9
        return self.linear(x) * scale


class Hooked(Base):
    """A hook that counts in a variable around it."""

    def __init__(self):
        super().__init__()
        calls = 0

        def hook(_, __, output):
            nonlocal calls
            calls += 1
            return output * (1 + calls / 10)

        self.linear.register_forward_hook(hook)

    def forward(self, x):
        return self.linear(x)


class Teacher(Base):
    """A moving average of itself, hidden in a list from the parameters."""

    def __init__(self):
        super().__init__()
        self.teacher = [copy.deepcopy(self.linear).requires_grad_(False)]

    def forward(self, x):
        with torch.no_grad():
            for ours, theirs in zip(
                self.teacher[0].parameters(), self.linear.parameters(), strict=True
            ):
                ours.lerp_(theirs, 0.1)
        return self.linear(x) + self.teacher[0](x)


class Draws(Base):
    """Noise from generators of its own, one of them made in the first forward pass."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)
        self.late = None

    def forward(self, x):
        if self.late is None:
            self.late = np.random.default_rng(0)
        noise = torch.randn(x.shape, generator=self.generator)
        return self.linear(x + 0.1 * noise + float(self.late.normal()))


class Unfreezing(Base):
    """Trains a second layer from its third call on."""

    def __init__(self):
        super().__init__()
        self.head, self.calls = nn.Linear(3, 3).requires_grad_(False), 0

    def forward(self, x):
        self.calls += self.training
        if self.calls == 3:
            self.head.requires_grad_(True)
        return self.head(self.linear(x))


class Merging(Base):
    """Adds a low-rank part to its weight while it evaluates, as adapters do."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(1, 2)), nn.Parameter(torch.randn(3, 1))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if not mode and not self.merged:
            self.linear.weight.data += self.up.data @ self.down.data
            self.merged = True
        elif mode and self.merged:
            self.linear.weight.data -= self.up.data @ self.down.data
            self.merged = False
        return self

    def forward(self, x):
        output = self.linear(x)
        return output if self.merged else output + x @ self.down.T @ self.up.T


class Momentum(nn.BatchNorm1d):
    """A batch norm that updates its statistics whatever the mode."""

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True)


class AlwaysNormed(Base):
    """Uses the statistics that it keeps updating."""

    def __init__(self):
        super().__init__()
        self.norm = Momentum(2)

    def forward(self, x):
        return self.linear(self.norm(x) + self.norm.running_mean)


CARRIED: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        Counting, Recurrent, Queue, Bank, Observer, LateBuffer, Nested, Hooked, Teacher, Draws,
        Unfreezing, Merging, AlwaysNormed,
    )
}  # fmt: skip


class Points(Dataset):
    """The blobs with noise from `noise(index)`."""

    def __init__(self, data, noise):
        self.points, self.labels = data
        self.noise = noise

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.points[index] + 0.3 * self.noise(index), self.labels[index]


class Jitter:
    """A transform with a generator of its own, of whatever library."""

    def __init__(self, own):
        self.own = own

    def __call__(self, index):
        if isinstance(self.own, torch.Generator):
            return torch.randn(2, generator=self.own)
        if isinstance(self.own, random.Random):
            return torch.tensor([self.own.gauss(0, 1), self.own.random()])
        return torch.from_numpy(self.own.normal(0, 1, 2)).float()


class LateJitter:
    """Makes its generator when it is first asked."""

    own = None

    def __call__(self, index):
        self.own = self.own or np.random.default_rng(0)
        return torch.from_numpy(self.own.normal(0, 1, 2)).float()


GLOBAL = np.random.default_rng(0)


def jitter_of_a_global(index):
    """Noise from a generator of this file's."""
    return torch.from_numpy(GLOBAL.normal(0, 1, 2)).float()


SEEDED = {
    "Generator": lambda: Jitter(np.random.default_rng(0)),
    "RandomState": lambda: Jitter(np.random.RandomState(0)),
    "Philox": lambda: Jitter(np.random.Generator(np.random.Philox(0))),
    "Random": lambda: Jitter(random.Random(0)),
    "torch": lambda: Jitter(torch.Generator().manual_seed(0)),
    "late": LateJitter,
    "global": lambda: jitter_of_a_global,
}


class Alternating:
    """Noise that depends on how often it was asked."""

    calls = 0

    def __call__(self, index):
        self.calls += 1
        return torch.full((2,), float(self.calls % 7))


class Remembering:
    """Keeps the noise that it once drew for an example."""

    def __init__(self):
        self.cache = {}

    def __call__(self, index):
        if index not in self.cache:
            self.cache[index] = torch.randn(2)
        return self.cache[index]


class Caching:
    """Keeps what it worked out for an example, which is the same each time; counts its hits."""

    def __init__(self):
        self.cache, self.hits = {}, count()

    def __call__(self, index):
        next(self.hits)
        if index not in self.cache:
            self.cache[index] = torch.full((2,), float(index % 5))
        return self.cache[index]
