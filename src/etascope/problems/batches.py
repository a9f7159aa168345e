"""Where batches come from: one small class for each kind of data that a problem takes.

A source gives training batches as a pure function of (seed, epoch, position), and held-out
batches in one fixed order. An epoch holds full batches only, so that the gradient noise is the
same at every step; the examples left over are others each epoch, since each has its own order.
A set smaller than one batch is one batch.

Held-out batches are the user's: those of a DataLoader hold what it would put into each, those of
tensors and datasets are of the problem's batch size. Smaller ones are made only where that is
known to change nothing (`etascope.problems.cutting`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from etascope.errors import UsageError
from etascope.problems.contents import Batch
from etascope.problems.kinds import refuse_tables
from etascope.randomness import generator

_ITERATION = ("__iter__", "_get_iterator")  # how a DataLoader, and no subclass, gives its batches
EpochFunction = Callable[[int, int], Iterable[Batch]]

HELD_OUT_BATCHES = 10  # the least, where batches may be cut: their spread is what verdicts rest on


class Counted(NamedTuple):
    """A batch, and how many examples were fetched for it; None where its source cannot tell."""

    batch: Batch
    examples: int | None


class Source(Protocol):
    """A stream of training batches and a fixed order of held-out ones.

    Attributes:
        batches_per_epoch: of training; None where that is not known.
        batch_examples: how many examples each training batch holds; None where that is not known.
        cuttable: whether held-out batches may be made smaller, which is asked before they are.
    """

    batches_per_epoch: int | None
    batch_examples: int | None
    cuttable: bool

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch in the order of (seed, epoch), from position `start` on."""

    def in_order(self, *, cut: bool = False) -> Iterator[Counted]:
        """All examples once, in a fixed order; in smaller batches where `cut`."""


class IndexedSource:
    """Tensors or a map-style dataset: examples that can be fetched by number.

    Args:
        examples: how many there are.
        batch_size: examples a batch.
        fetch: from the numbers of examples to their batch.
        held_out: which numbers make which held-out batch; None for batches of the batch size in
            an order shuffled once and for all, since a set sorted by class must not give rungs of
            one class.
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        fetch: Callable[[list[int]], Batch],
        held_out: list[list[int]] | None = None,
    ) -> None:
        self._examples = examples
        self._fetch = fetch
        self._held_out = held_out
        self.batch_examples: int | None = min(batch_size, examples)
        self.batches_per_epoch: int | None = examples // self.batch_examples
        self._part = min(self.batch_examples, max(1, examples // HELD_OUT_BATCHES))
        self.cuttable = held_out is None and self._part < self.batch_examples

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = torch.randperm(self._examples, generator=generator(seed, "order", epoch)).tolist()
        assert self.batch_examples is not None
        for numbers in _chunks(order, self.batch_examples)[start : self.batches_per_epoch]:
            yield self._fetch(numbers)

    def in_order(self, *, cut: bool = False) -> Iterator[Counted]:
        for numbers in self._numbers(cut=cut):
            yield Counted(self._fetch(numbers), len(numbers))

    def cuts(self) -> Iterator[tuple[Counted, list[Counted]]]:
        """The held-out batches as they are, each with the smaller ones that it can be cut into."""
        for numbers in self._numbers(cut=False):
            parts = [Counted(self._fetch(part), len(part)) for part in _chunks(numbers, self._part)]
            yield Counted(self._fetch(numbers), len(numbers)), parts

    def first_and_last(self, *, cut: bool) -> tuple[Counted, Counted]:
        """The first held-out batch and the last, which alone may be smaller."""
        numbers = self._numbers(cut=cut)
        ends = numbers[0], numbers[-1]
        first, last = (Counted(self._fetch(end), len(end)) for end in ends)
        return first, last

    def _numbers(self, *, cut: bool) -> list[list[int]]:
        if self._held_out is not None:
            return self._held_out
        assert self.batch_examples is not None
        return _chunks(_shuffled(self._examples), self._part if cut else self.batch_examples)


def _chunks(numbers: list[int], size: int) -> list[list[int]]:
    return [numbers[first : first + size] for first in range(0, len(numbers), size)]


def _shuffled(count: int) -> list[int]:
    """The numbers below `count` in the one order that held-out sets have."""
    order: list[int] = torch.randperm(count, generator=generator(0, "held out")).tolist()
    return order


class FunctionSource:
    """A function `(seed, epoch) -> iterable of batches`; how many there are need not be known."""

    batches_per_epoch: int | None = None
    batch_examples: int | None = None
    cuttable = False

    def __init__(self, function: EpochFunction) -> None:
        self._function = function

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        return islice(iter(self._function(seed, epoch)), start, None)

    def in_order(self, *, cut: bool = False) -> Iterator[Counted]:
        return (Counted(batch, None) for batch in self._function(0, 0))


def make_source(
    data: object, batch_size: int, collate: Callable[[list[Any]], Batch] | None, name: str
) -> Source:
    """The source for what the user passed as `name` (train, valid or test).

    Raises:
        UsageError: if it is no tuple of tensors or arrays, map-style Dataset, DataLoader or
            function, if it is empty, or if it orders its batches in a way that cannot be repeated.
    """
    refuse_tables(data, name)
    if isinstance(data, (torch.Tensor, np.ndarray)):
        data = (data,)
    if isinstance(data, (tuple, list)):
        arrays = [isinstance(part, (torch.Tensor, np.ndarray)) for part in data]
        if any(arrays) and not all(arrays):
            kinds = " and ".join(dict.fromkeys(type(part).__name__ for part in data))
            raise UsageError(f"{name} is a {type(data).__name__} of {kinds}; make each a tensor")
        if any(arrays):
            make = getattr(data, "_make", tuple)  # a batch of a named tuple is one too
            return _from_tensors(make(_tensor(p, name) for p in data), batch_size, name)
    if isinstance(data, DataLoader):
        return _from_loader(data, collate, name)
    if isinstance(data, IterableDataset):
        raise UsageError(
            f"{name} is an IterableDataset, whose order cannot be repeated for every rate; "
            "pass a function (seed, epoch) -> iterable of batches"
        )
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Mapping):
        return _from_dataset(cast("Dataset[Any]", data), batch_size, collate, name)
    if callable(data):
        return FunctionSource(cast(EpochFunction, data))
    raise UsageError(
        f"{name} is a {type(data).__name__}; pass a tuple of tensors, a map-style Dataset, a "
        "DataLoader, or a function (seed, epoch) -> iterable of batches"
    )


def _tensor(array: torch.Tensor | np.ndarray[Any, Any], name: str) -> torch.Tensor:
    """The tensor of an array; both share their memory where torch can share it."""
    if isinstance(array, torch.Tensor):
        return array
    try:
        # What cannot be written, or runs backwards, torch cannot share.
        plain = array.flags.writeable and all(stride >= 0 for stride in array.strides)
        return torch.from_numpy(array if plain else array.copy())
    except (TypeError, ValueError):
        raise UsageError(
            f"{name} holds an array of {array.dtype}, which torch cannot hold; "
            "convert it, to float32 for example"
        ) from None


def _from_tensors(tensors: tuple[torch.Tensor, ...], batch_size: int, name: str) -> Source:
    counts = {len(t) if t.ndim else 0 for t in tensors}
    if len(counts) != 1:
        raise UsageError(f"the tensors of {name} hold {sorted(counts)} examples; make them equal")
    (examples,) = counts
    _nonempty(examples, name)
    make = getattr(tensors, "_make", tuple)
    return IndexedSource(
        examples, batch_size, lambda numbers: make(t[torch.tensor(numbers)] for t in tensors)
    )


def _from_dataset(
    dataset: Dataset[Any],
    batch_size: int,
    collate: Callable[[list[Any]], Batch] | None,
    name: str,
    held_out: list[list[int]] | None = None,
) -> Source:
    examples = len(dataset)  # type: ignore[arg-type]
    _nonempty(examples, name)
    join = collate or default_collate
    # A dataset may have a way of its own to fetch several, which a DataLoader would use too.
    several = getattr(dataset, "__getitems__", None)

    def fetch(numbers: list[int]) -> Batch:
        return join(several(numbers) if several else [dataset[number] for number in numbers])

    return IndexedSource(examples, batch_size, fetch, held_out)


def _from_loader(
    loader: DataLoader[Any], collate: Callable[[list[Any]], Batch] | None, name: str
) -> Source:
    own = "pass a function (seed, epoch) -> iterable of batches"
    dataset, batches = loader.dataset, loader.batch_sampler
    if batches is None and not isinstance(dataset, IterableDataset):
        raise UsageError(
            f"the DataLoader given as {name} has batch_size=None, so its dataset gives whole "
            f"batches, which cannot be drawn anew in each epoch; give it a batch_size, or {own}"
        )
    if (
        type(batches) is not BatchSampler
        or not _passes_once(batches.sampler, dataset)
        or any(getattr(type(loader), way) is not getattr(DataLoader, way) for way in _ITERATION)
    ):
        raise UsageError(
            f"the DataLoader given as {name} has an order of its own, which cannot be repeated "
            f"for every rate; {own}"
        )
    size, join = batches.batch_size, collate or loader.collate_fn
    held_out = _batches_of(batches, len(dataset))  # type: ignore[arg-type]
    if len(dataset) and not held_out:  # type: ignore[arg-type]
        raise UsageError(
            f"the DataLoader given as {name} gives no batch: it drops the last one, and its "
            f"{len(dataset)} examples do not fill one of {size}; give it a smaller batch_size"  # type: ignore[arg-type]
        )
    return _from_dataset(dataset, size, join, name, held_out)


def _batches_of(batches: BatchSampler, examples: int) -> list[list[int]]:
    """The numbers in each held-out batch of a loader, which a rung takes from the first one on.

    A loader that shuffles has its examples shuffled once. The batches of one that does not hold
    what they would hold there; only the full ones change places, since a set sorted by class must
    not give rungs of one class.
    """
    size, shuffles = batches.batch_size, isinstance(batches.sampler, RandomSampler)
    chunks = _chunks(_shuffled(examples) if shuffles else list(range(examples)), size)
    full, rest = chunks[: examples // size], chunks[examples // size :]
    if not shuffles:
        full = [full[place] for place in _shuffled(len(full))]
    return full if batches.drop_last else [*full, *rest]


def _passes_once(sampler: object, dataset: Dataset[Any]) -> bool:
    """Whether a sampler draws every example once an epoch, shuffled or in order, as we do."""
    return (
        isinstance(sampler, (RandomSampler, SequentialSampler))
        and type(sampler) in (RandomSampler, SequentialSampler)  # a subclass may do anything
        and not getattr(sampler, "replacement", False)
        and len(sampler) == len(dataset)  # type: ignore[arg-type]
    )


def _nonempty(examples: int, name: str) -> None:
    if examples == 0:
        raise UsageError(f"{name} holds no examples")
