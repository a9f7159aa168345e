"""A loop of your own: two optimizers, for an encoder and a decoder that are stepped in turn."""

import torch
from torch import nn

import etascope as es


def make_state(lr):
    parts = {"encoder": nn.Linear(8, 2), "decoder": nn.Linear(2, 8)}
    return parts | {f"{name} sgd": torch.optim.SGD(parts[name].parameters(), lr) for name in parts}


def evaluate(state, batch):
    return (state["decoder"](state["encoder"](batch[0])) - batch[0]).square().mean()


def step(state, batch):
    for name in ("encoder sgd", "decoder sgd"):
        state[name].zero_grad()
        loss = evaluate(state, batch)
        loss.backward()
        state[name].step()
    return loss


data = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 8)
problem = es.Problem.from_step(make_state, step, evaluate, train=data[:400], valid=data[400:])
print(es.find(problem, steps=150).lr)
