"""A stream without a length: a function of (seed, epoch) that yields batches."""

import torch
from torch import nn

import etascope as es


def noisy_waves(seed, epoch, batches=50):
    draw = torch.Generator().manual_seed(1000 * seed + epoch)
    for _ in range(batches):
        x = 6 * torch.rand(32, 1, generator=draw)
        yield x, x.sin() + 0.1 * torch.randn(32, 1, generator=draw)


problem = es.Problem(
    model=lambda: nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1)),
    loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
    train=noisy_waves,
    valid=lambda seed, epoch: noisy_waves(9, 0, batches=10),
)
print(es.find(problem, steps=200, optimizer="adam").lr)
