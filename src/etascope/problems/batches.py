"""Where batches come from: one small class for each kind of data that a problem takes.

A source gives training batches as a pure function of (seed, epoch, position), and held-out
batches in one fixed order. An epoch holds full batches only, so that the gradient noise is the
same at every step; the examples left over are others each epoch, since each has its own order.
A set smaller than one batch is one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, cast

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
from etascope.problems.kinds import refuse_tables
from etascope.randomness import generator

Batch = Any
EpochFunction = Callable[[int, int], Iterable[Batch]]


class Source(Protocol):
    """A stream of training batches and a fixed order of held-out ones."""

    batches_per_epoch: int | None

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch in the order of (seed, epoch), from position `start` on."""

    def in_order(self) -> Iterator[Batch]:
        """All examples once, in a fixed order."""


class IndexedSource:
    """Tensors or a map-style dataset: examples that can be fetched by number."""

    def __init__(self, examples: int, batch_size: int, fetch: Callable[[list[int]], Batch]) -> None:
        self._examples = examples
        self._batch_size = min(batch_size, examples)
        self._fetch = fetch
        self.batches_per_epoch: int | None = examples // self._batch_size

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = torch.randperm(self._examples, generator=generator(seed, "order", epoch)).tolist()
        size = self._batch_size
        for number in range(start, self._examples // size):
            yield self._fetch(order[number * size : (number + 1) * size])

    def in_order(self) -> Iterator[Batch]:
        # Several batches even of a small set: their spread is what a verdict is judged by.
        size = min(self._batch_size, max(1, self._examples // 10))
        # A set sorted by class must not give rungs of one class: shuffled once, for good.
        order = torch.randperm(self._examples, generator=generator(0, "held out")).tolist()
        for first in range(0, self._examples, size):
            yield self._fetch(order[first : first + size])


class FunctionSource:
    """A function `(seed, epoch) -> iterable of batches`; how many there are need not be known."""

    batches_per_epoch: int | None = None

    def __init__(self, function: EpochFunction) -> None:
        self._function = function

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        return islice(iter(self._function(seed, epoch)), start, None)

    def in_order(self) -> Iterator[Batch]:
        return iter(self._function(0, 0))


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
            return _from_tensors(tuple(_tensor(p, name) for p in data), batch_size, name)
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
    return IndexedSource(
        examples, batch_size, lambda numbers: tuple(t[torch.tensor(numbers)] for t in tensors)
    )


def _from_dataset(
    dataset: Dataset[Any],
    batch_size: int,
    collate: Callable[[list[Any]], Batch] | None,
    name: str,
) -> Source:
    examples = len(dataset)  # type: ignore[arg-type]
    _nonempty(examples, name)
    join = collate or default_collate
    return IndexedSource(
        examples, batch_size, lambda numbers: join([dataset[number] for number in numbers])
    )


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
    if type(batches) is not BatchSampler or not _passes_once(batches.sampler, dataset):
        raise UsageError(
            f"the DataLoader given as {name} has an order of its own, which cannot be repeated "
            f"for every rate; {own}"
        )
    return _from_dataset(dataset, batches.batch_size, collate or loader.collate_fn, name)


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


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with every tensor in it (in tuples, lists, mappings) on `device`."""
    if hasattr(batch, "to") and callable(batch.to):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def tensors_of(batch: Batch) -> Iterator[torch.Tensor]:
    """Every tensor in a batch, depth first."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, (Mapping, Sequence)) and not isinstance(batch, str):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_of(value)


def examples_in(batch: Batch) -> int:
    """How many examples a batch holds: the length of its first tensor; 1 without one."""
    first = next(tensors_of(batch), None)
    return len(first) if first is not None and first.ndim else 1
