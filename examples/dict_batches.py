"""Batches that are dicts, a model with several inputs, and regression."""

import torch
from torch import nn

import etascope as es

left, right = torch.rand(2, 500, 4, generator=torch.Generator().manual_seed(0))
rows = [{"left": x, "right": y, "target": x @ y} for x, y in zip(left, right, strict=True)]


def loss(model, batch):
    return (model(batch["left"], batch["right"]).squeeze(-1) - batch["target"]).square().mean()


def model():
    return nn.Bilinear(4, 4, 1)


problem = es.Problem(model=model, loss=loss, train=rows[:400], valid=rows[400:], batch_size=20)
print(es.find(problem, steps=150, optimizer="sgd-momentum").lr)
