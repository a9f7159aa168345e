"""A module that exists, with a frozen part: trials train copies of it, and it stays as it is."""

import torch
from own_model import points
from torch import nn

import etascope as es

outside = (points.norm(dim=1) > 0.6).long()
model = nn.Sequential(nn.Linear(2, 128), nn.Tanh(), nn.Linear(128, 2))
model[0].requires_grad_(False)
before = model[2].weight.clone()
problem = es.Problem(
    model=model,
    loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
    train=(points[:1600], outside[:1600]),
    valid=(points[1600:], outside[1600:]),
)
print(es.find(problem, steps=150, optimizer="sgd-nesterov").lr)
assert torch.equal(model[2].weight, before)
