"""A language model: the loss is the cross-entropy of the next token at every place."""

import torch
from torch import nn

import etascope as es

text = torch.tensor(list(b"the cat sat on the mat and the dog sat on the cat. " * 100))
windows = text[: len(text) // 33 * 33].view(-1, 33)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.gru = nn.Embedding(128, 32), nn.GRU(32, 64, batch_first=True)
        self.head = nn.Linear(64, 128)

    def forward(self, tokens):
        return self.head(self.gru(self.embed(tokens))[0])


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0][:, :-1]).mT, batch[0][:, 1:])


problem = es.Problem(Model, loss, train=windows[:120], valid=windows[120:], batch_size=10)
print(es.find(problem, steps=100, optimizer="adam").lr)
