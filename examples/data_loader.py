"""A Dataset in a DataLoader, whose batch size and collate are used; the order is not its own."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import etascope as es

images = torch.rand(600, 1, 8, 8, generator=torch.Generator().manual_seed(0))
brighter = (images[..., :4].mean((1, 2, 3)) > images[..., 4:].mean((1, 2, 3))).long()
train, valid = random_split(TensorDataset(images, brighter), [500, 100])
problem = es.Problem(
    model=lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)),
    loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
    train=DataLoader(train, batch_size=25, shuffle=True),
    valid=DataLoader(valid, batch_size=25),
)
print(es.find(problem, epochs=5, optimizer="adamw", schedule="cosine").lr)
