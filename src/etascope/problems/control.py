"""The control: a batch at the untrained weights, where no learning rate can be to blame.

What is not finite there is the fault of the batch or of the code. Nothing of this runs while all
is well: a control is asked for after something was not finite, and builds a model for it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from torch import nn

from etascope.errors import RAISED, UsageError
from etascope.problems.batches import Counted, Source
from etascope.problems.contents import Batch, tensors_of
from etascope.problems.owned import Owned
from etascope.problems.problem import Problem
from etascope.problems.stream import BatchStream, Place
from etascope.randomness import seed_everything
from etascope.records import Failure
from etascope.tensors import dense_parts, is_finite

LOOKED_AT = 200  # batches of an epoch, at most, among which the unusable ones are counted
UNMOVED = 1e-12  # the rate of an own step that is taken for its gradient alone
REMEDY = (
    "mend the data or the loss where it is not finite (all labels ignored, a division by 0), "
    "or pass skip_unusable=True to go on without such batches"
)


class Tally(NamedTuple):
    """How many batches of an epoch cannot be used, of how many that were looked at."""

    unusable: int
    batches: int

    def __str__(self) -> str:
        return f"{self.unusable} of {self.batches} batches"


class Control:
    """Looks at batches of a seed with the weights that it begins with.

    Args:
        problem: whose batches and loss.
        seed: of the initial weights and the order.
        count: batches a step.
        precision: makes the context in which a loss is computed, as in the trial.
    """

    def __init__(
        self,
        problem: Problem,
        seed: int,
        count: int = 1,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._problem, self._seed = problem, seed
        self._count, self._precision = count, precision

    def failure(
        self, batches: list[Batch], masks: int, taken: int, place: Place, step: int | None = None
    ) -> Failure | None:
        """The failure of a step's batches that are not finite at untrained weights either.

        Args:
            batches: those of draw `taken` - 1.
            masks: the step whose draws they are looked at with.
            taken, place: the draws made, and the place in the data, after them.
            step: that the failure is noticed at; by default the same.
        """
        flaw = self.flaw(batches, masks)
        if flaw is None:
            return None
        epoch, position = place
        tally = self.tally(epoch, taken * self._count - position)
        numbers = " to ".join(str(n) for n in sorted({position - self._count, position - 1}))
        values = "it holds values that are not finite; " if holds_non_finite(batches) else ""
        message = (
            f"{flaw} on batch {numbers} of epoch {epoch} (seed {self._seed}, step {masks}) at the "
            f"untrained weights too, so no learning rate is to blame; {values}{tally} of that "
            "epoch cannot be used"
        )
        return Failure(masks if step is None else step, "data", None, message, REMEDY)

    def held_out_failure(self, step: int, examples: int | None) -> Failure | None:
        """The failure of held-out batches whose loss is not finite at untrained weights either."""
        with self._precision():
            unusable, held_out = held_out_flaws(self._problem, self.model(), examples)
        if not unusable:
            return None
        number, loss = next(iter(unusable.items()))
        message = (
            f"the loss of held-out batch {number} is {loss} at the untrained weights too, so no "
            f"learning rate is to blame; {Tally(len(unusable), held_out)} cannot be used"
        )
        return Failure(step, "data", None, message, REMEDY)

    def flaw(self, batches: Iterable[Batch], step: int) -> str | None:
        """What is not finite of a step's batches, with the draws of that step; None if usable.

        Where computing it raises, nothing can be told and it is None too.
        """
        return next(self._flaws([(step, list(batches))]))

    def tally(self, epoch: int, first: int) -> Tally:
        """Count the unusable batches of an epoch whose first batch is number `first` of all."""
        batches = self.epoch(epoch, first)
        flaws = list(self._flaws((first + k, [batch]) for k, batch in enumerate(batches)))
        return Tally(sum(flaw is not None for flaw in flaws), len(flaws))

    def _flaws(self, steps: Iterable[tuple[int, list[Batch]]]) -> Iterator[str | None]:
        """The flaw of each step's batches; no update is made, so that one model mostly does."""
        model: nn.Module | None = None
        for step, batches in steps:
            flaw = None
            try:
                model = model or self.model()
                flaw = self._flaw(model, batches, step)
            except RAISED:
                model = None
            if flaw is not None or self._problem.owns_step:
                model = None
            yield flaw

    def epoch(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch whose first one is number `first` of all; not all of a long one.

        They are drawn as a trial draws them.
        """
        stream = BatchStream(self._problem, self._seed, 1)
        for k in range(LOOKED_AT):
            try:
                batches, place = stream.take(first + k, (epoch, k))
            except RAISED:
                return
            if place[0] != epoch:
                return
            yield from batches

    def batches_before(self, taken: int, place: Place | None) -> tuple[list[Batch], Place]:
        """The batches of draw `taken` - 1, and the place after them.

        Args:
            taken: draws of a step's batches so far.
            place: where that draw began; without it all draws may have to be made again.
        """
        stream = BatchStream(self._problem, self._seed, self._count)
        each = self._problem.sources["train"].batches_per_epoch
        if place is None and each is not None:
            place = divmod((taken - 1) * self._count, each)
        if place is not None:
            return stream.take(taken - 1, place)
        place = (0, 0)
        batches: list[Batch] = []
        for draw in range(taken):
            batches, place = stream.take(draw, place)
        return batches, place

    def model(self) -> nn.Module:
        """A new model with the weights that the seed begins with."""
        model = self._problem.make_model(self._seed)
        if isinstance(model, Owned):
            model.begin(UNMOVED)
        return model

    def _flaw(self, model: nn.Module, batches: Iterable[Batch], step: int) -> str | None:
        seed_everything(self._problem.torch_device, self._seed, "step", step)
        for batch in batches:
            model.zero_grad(set_to_none=True)
            with self._precision():
                loss = self._problem.loss(model, batch)
            if not self._problem.owns_step:
                loss.backward()  # type: ignore[no-untyped-call]
            flaw = flaw_of(model, float(loss.detach()))
            if flaw is not None:
                return flaw
        return None


def flaw_of(model: nn.Module, loss: float) -> str | None:
    """What is not finite after a backward pass: the loss, or a gradient; None if nothing is.

    >>> flaw_of(nn.Linear(1, 1), math.nan)
    'the loss is nan'
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if isinstance(model, Owned):  # its gradients are its own business, its weights are not
        names = [name for name, p in model.parts.named_parameters() if not is_finite(p)]
        return f"the first step makes {_listed(names)} non-finite" if names else None
    names = [n for n, p in model.named_parameters() if p.grad is not None and not is_finite(p.grad)]
    return f"the gradient is not finite in {_listed(names)}" if names else None


def finite_gradient(model: nn.Module) -> bool:
    """Whether every gradient that the parameters of the model have is finite."""
    return all(is_finite(p.grad) for p in model.parameters() if p.grad is not None)


def zero_gradient(model: nn.Module) -> bool:
    """Whether every gradient that the parameters of the model have is 0."""
    return not any(
        bool(dense_parts(p.grad)[-1].any()) for p in model.parameters() if p.grad is not None
    )


def holds_non_finite(batches: Iterable[Batch]) -> bool:
    """Whether a tensor of a batch holds a value that is not finite."""
    return not all(is_finite(t) for batch in batches for t in tensors_of(batch))


def held_out_flaws(
    problem: Problem, model: nn.Module, examples: int | None = None
) -> tuple[dict[int, float], int]:
    """The held-out losses that are not finite, by batch number, and how many batches there are."""
    losses = problem.evaluate(model, "valid", 0, examples).batch_losses
    return {k: x for k, x in enumerate(losses) if not math.isfinite(x)}, len(losses)


def without_unusable(problem: Problem) -> tuple[Problem, Tally]:
    """The problem without the held-out batches whose loss is not finite at untrained weights.

    They are left out for every trial alike, so that their losses can be compared batch by batch.
    Call it inside `undisturbed`; the given problem stays as it is.

    Raises:
        UsageError: if no held-out batch can be used.
    """
    unusable, held_out = held_out_flaws(problem, Control(problem, 0).model())
    tally = Tally(len(unusable), held_out)
    if not unusable:
        return problem, tally
    if tally.unusable == tally.batches:
        raise UsageError(
            f"the loss of the untrained model is not finite on any of the {tally.batches} "
            "held-out batches; check valid and the loss"
        )
    reduced = copy.copy(problem)
    kept = _Reduced(problem.sources["valid"], frozenset(unusable))
    object.__setattr__(reduced, "sources", {**problem.sources, "valid": kept})
    return reduced, tally


class _Reduced:
    """A source without some of its held-out batches."""

    def __init__(self, source: Source, left_out: frozenset[int]) -> None:
        self._source, self._left_out = source, left_out
        self.batches_per_epoch = source.batches_per_epoch
        self.batch_examples = source.batch_examples
        self.cuttable = False  # that was decided before it was known which batches are left out

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        return self._source.epoch(seed, epoch, start)

    def in_order(self, *, cut: bool = False) -> Iterator[Counted]:
        for number, batch in enumerate(self._source.in_order(cut=cut)):
            if number not in self._left_out:
                yield batch


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
