"""Your own model and data: a small network that tells the points of two spirals apart."""

import torch
from torch import nn

import etascope as es

angle = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 9 + 1
label = torch.arange(2000) % 2
points = (angle * torch.stack([(angle + 3.14 * label).cos(), (angle + 3.14 * label).sin()])).T / 10

problem = es.Problem(
    model=lambda: nn.Sequential(
        nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)
    ),
    loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
    metric=lambda model, batch: model(batch[0]).argmax(-1) == batch[1],
    train=(points[:1600], label[:1600]),
    valid=(points[1600:], label[1600:]),
)

if __name__ == "__main__":
    study = es.sweep(problem, lrs=es.logspace(1e-5, 1, 6), steps=500, seeds=3, optimizer="adam")
    for lr, verdict in study.verdicts.items():
        print(f"{lr:g}: {verdict.name}: {verdict.reason}")
    print("use", study.best, "and see", es.report(study, study.path / "report.html"))
