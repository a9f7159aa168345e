"""Your own model on tensors: a small network that tells the points of two spirals apart."""

import torch
from torch import nn

import etascope as es

angle, flip = torch.rand(2, 2000, generator=torch.Generator().manual_seed(0))
arm, turn = torch.arange(2000) % 2, 6 * angle + 1
points = (turn * torch.stack([(turn + 3.14 * arm).cos(), (turn + 3.14 * arm).sin()])).T / 5
label = arm ^ (flip < 0.1)  # a tenth of the labels is wrong
problem = es.Problem(
    model=lambda: nn.Sequential(nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 2)),
    loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
    metric=lambda model, batch: model(batch[0]).argmax(-1) == batch[1],
    train=(points[:1600], label[:1600]),
    valid=(points[1600:], label[1600:]),
)
if __name__ == "__main__":
    found = es.find(problem, steps=400, optimizer="adam")
    print("use", found.lr, "of", found.band, found.status, es.report(found.study, "report.html"))
