"""A small transformer that predicts the next character of a text that comes with Python."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from etascope.problems.contents import Batch
from etascope.problems.problem import Problem

CONTEXT = 64  # characters
WIDTH, HEADS, BLOCKS = 64, 4, 2
HELD_OUT = 10  # every tenth stretch of the text


class CharTransformer(nn.Module):
    """A decoder of two pre-norm blocks of width 64; returns logits.

        input [batch, time], characters as numbers
        output [batch, time, characters]

    Args:
        characters: how many different ones there are.

    Example:
        >>> CharTransformer(50)(torch.zeros(2, 64, dtype=torch.long)).shape
        torch.Size([2, 64, 50])
    """

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, WIDTH)
        self.place = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Logits [batch, time, characters] of the character after each one of [batch, time]."""
        hidden = self.embed(text) + self.place[: text.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        logits: torch.Tensor = self.head(self.norm(hidden))
        return logits


class Block(nn.Module):
    """Causal self-attention and a dense layer, each added to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.dense = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[batch, time, width] to the same."""
        batch, time, _ = hidden.shape
        parts = self.query_key_value(self.norm1(hidden)).view(batch, time, 3, HEADS, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.project(attended.transpose(1, 2).flatten(2))
        result: torch.Tensor = hidden + self.dense(self.norm2(hidden))
        return result


def next_character(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The mean cross-entropy of the next character, in nats."""
    text, following = batch
    return F.cross_entropy(model(text).flatten(0, 1), following.flatten())


def char_transformer(*, device: str = "auto") -> Problem:
    """The network of `CharTransformer` on the help texts of Python, in batches of 16 × 64.

    The text is that of the Python that runs it (`pydoc_data.topics`, some 450 000 characters), so
    another release of Python has slightly other losses. Every tenth stretch is held out.

    Args:
        device: where to train.
    """
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([alphabet[character] for character in text])
    stretches = len(numbers) // CONTEXT - 1
    inputs = numbers[: stretches * CONTEXT].view(stretches, CONTEXT)
    targets = numbers[1 : stretches * CONTEXT + 1].view(stretches, CONTEXT)
    held_out = torch.arange(stretches) % HELD_OUT == 0
    return Problem(
        model=lambda: CharTransformer(len(alphabet)),
        loss=next_character,
        train=(inputs[~held_out], targets[~held_out]),
        valid=(inputs[held_out], targets[held_out]),
        device=device,
        batch_size=16,
        name="char-transformer",
    )
