"""An optimizer of your own, with groups whose rates keep their ratio; a schedule, and clipping."""

import torch
from own_model import problem

import etascope as es


def make_optimizer(model, lr):
    slow = {"params": model[0].parameters(), "lr": lr / 10, "weight_decay": 0.0}
    return torch.optim.AdamW([slow, {"params": model[2].parameters()}], lr=lr)


def make_schedule(optimizer, steps):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)


more = {"clip": 1.0, "accumulate": 2}
print(es.find(problem, steps=400, optimizer=make_optimizer, schedule=make_schedule, **more).lr)
