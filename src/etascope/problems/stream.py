"""The training batches of a seed, step by step and from any place on."""

from __future__ import annotations

from collections.abc import Iterator

from etascope.errors import RAISED, UsageError
from etascope.problems.contents import Batch
from etascope.problems.problem import Problem
from etascope.randomness import seed_everything

Place = tuple[int, int]  # epoch, and how many batches of it are drawn


class BatchStream:
    """The training batches of a seed. Trials that go in lock step may share one.

    Args:
        problem: whose batches.
        seed: which order.
        count: batches a step.
    """

    def __init__(self, problem: Problem, seed: int, count: int) -> None:
        self._problem, self._seed, self._count = problem, seed, count
        self._drawn = self._epoch = self._position = 0
        self._batches: Iterator[Batch] | None = None
        self._held: tuple[int, list[Batch] | Exception | SystemExit] | None = None
        self._begun = False

    def take(self, step: int, place: Place) -> tuple[list[Batch], Place]:
        """The batches of a step that begins at `place`, and the place after them.

        Asked again for the same step it gives out the same batches, or raises the same error.

        Raises:
            UsageError: if an epoch holds no batch.
        """
        if self._held is None or self._held[0] != step:
            self._held = None  # frees the last batches before the next ones are made
            if (self._drawn, self._epoch, self._position) != (step * self._count, *place):
                self._seek(step * self._count, *place)
            try:
                self._held = step, [self._draw() for _ in range(self._count)]
                if not self._begun and self._problem.adopt_generators():
                    # A dataset made its generator with the first batch: once more, now seeded.
                    self._seek(step * self._count, *place)
                    self._held = step, [self._draw() for _ in range(self._count)]
                self._begun = True
            except RAISED as error:  # told to everyone who asks
                self._held = step, error
        batches = self._held[1]
        if isinstance(batches, RAISED):
            raise batches
        return batches, (self._epoch, self._position)

    def _seek(self, drawn: int, epoch: int, position: int) -> None:
        self._drawn, self._epoch, self._position = drawn, epoch, position
        self._batches = None

    def _draw(self) -> Batch:
        if self._batches is None:
            self._batches = self._open()
        self._seed_batch(self._drawn)
        batch = next(self._batches, None)
        if batch is None:
            if self._position == 0:
                raise UsageError(f"train gave no batch in epoch {self._epoch}")
            self._seek(self._drawn, self._epoch + 1, 0)
            return self._draw()
        self._drawn += 1
        self._position += 1
        return batch

    def _open(self) -> Iterator[Batch]:
        """The batches of the epoch from the position on.

        Where they come from a function they are drawn again up to there, each under its own
        seed, so that a function which draws from global generators repeats itself.
        """
        self._seed_batch(self._drawn - self._position)
        if self._problem.sources["train"].batches_per_epoch is not None:
            return self._problem.batches(self._seed, self._epoch, self._position)
        batches = self._problem.batches(self._seed, self._epoch)
        for number in range(self._drawn - self._position, self._drawn):
            self._seed_batch(number)
            next(batches, None)
        return batches

    def _seed_batch(self, number: int) -> None:
        seed_everything(self._problem.torch_device, self._seed, "batch", number)
