"""The `Problem`: what is trained. Model, data, loss and metric, and how to evaluate them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from etascope.arguments import finite, whole
from etascope.attributes.untouched import untouched
from etascope.errors import UsageError
from etascope.problems.batches import Counted, IndexedSource, Source, make_source
from etascope.problems.contents import Batch, examples_in, to_device
from etascope.problems.copies import copied, tied_by_memory
from etascope.problems.cutting import is_mean_over_examples
from etascope.problems.layout import with_channels_last
from etascope.problems.making import Maker
from etascope.problems.owned import Owned, loss_of, metric_of, roots_of
from etascope.randomness import adopt, seed_everything
from etascope.records import Evaluation, Split

# The splits that have been drawn from in this process, so that generators made late are known.
_LOOKED_AT: WeakKeyDictionary[Problem, set[str]] = WeakKeyDictionary()


class Score(NamedTuple):
    """A held-out batch: its examples, its mean loss, and one float64 value of the metric each."""

    examples: int
    loss: float
    values: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Problem:
    """What is trained: a model, its data, its loss and, if there is one, its metric.

    Args:
        model: a function without arguments that returns a new module, called after seeding; or an
            existing module (fine-tuning), of which every trial trains a deep copy. Modules that are
            in evaluation mode stay in it while training, such as frozen batch norms; a model of
            which every module is, is put in training mode as a whole.
        loss: `(model, batch) -> scalar tensor`, the mean over the batch.
        train: the training data: a tuple of tensors, a map-style Dataset, a DataLoader (its
            dataset, batch size and collate are used), or a function
            `(seed, epoch) -> iterable of batches`. An array of numpy stands for the tensor that
            `torch.from_numpy` makes of it.
        valid: held-out data of the same kinds; decisions rest on it. The batches of a DataLoader
            hold what it would put into each, and those of other data `batch_size` examples; they
            are smaller only in a small set, and where the loss is a mean over examples.
        test: optional; reported at the end, never used to decide anything.
        metric: optional, `(model, batch) -> one value per example, or a scalar`.
        higher_is_better: whether a larger metric is the better one.
        chance: the held-out loss of knowing nothing; by default that of the best constant
            prediction, worked out from the labels or targets, or else the initial loss.
        examples: optional, `batch -> how many examples it holds`, for batches of a function whose
            parts do not agree on it, such as nodes and graphs.
        collate: joins a list of examples to a batch; torch's default where None.
        device: where to train: `auto` (an accelerator if there is one), or torch's name for it.
        batch_size: examples a batch (a DataLoader's own wins).
        name: how reports call it.
        reference: how a command line names it; `problems.registry.get_problem` fills it in.

    Raises:
        UsageError: if a value is of the wrong kind; `etascope.problems.checks.inspect` then runs
            the parts once and names the one that does not work.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> problem = Problem(
        ...     model=lambda: torch.nn.Linear(1, 1),
        ...     loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        ...     train=(x, 3 * x),
        ...     valid=(x, 3 * x),
        ...     batch_size=16,
        ... )
        >>> problem.sources["train"].batches_per_epoch
        4
    """

    model: nn.Module | Callable[[], nn.Module]
    loss: Callable[[nn.Module, Batch], torch.Tensor]
    train: Any = field(repr=False)
    valid: Any = field(repr=False)
    test: Any = field(default=None, repr=False)
    metric: Callable[[nn.Module, Batch], Any] | None = None
    higher_is_better: bool = True
    chance: float | None = None
    examples: Callable[[Batch], int] | None = None
    collate: Callable[[list[Any]], Batch] | None = None
    device: str | torch.device = "auto"
    batch_size: int = 50
    name: str = "problem"
    reference: str | None = None
    sources: dict[Literal["train", "valid", "test"], Source] = field(init=False, repr=False)
    maker: Maker | None = field(init=False, repr=False)
    cuts: dict[Split, bool] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        size = whole("batch_size", self.batch_size, least=1)
        object.__setattr__(self, "batch_size", size)
        for name in ("model", "loss", "metric", "examples", "collate"):
            given = getattr(self, name)
            if not callable(given) and (given is not None or name in ("model", "loss")):
                raise UsageError(f"{name} is a {type(given).__name__}; it must be a function")
        if isinstance(self.model, type) and not issubclass(self.model, nn.Module):
            raise UsageError(f"model is the class {self.model.__name__}, which is no nn.Module")
        if self.chance is not None:
            object.__setattr__(self, "chance", finite("chance", self.chance))
        object.__setattr__(self, "device", _resolve(self.device))
        sources = {
            "train": make_source(self.train, size, self.collate, "train"),
            "valid": make_source(self.valid, size, self.collate, "valid"),
        }
        if self.test is not None:
            sources["test"] = make_source(self.test, size, self.collate, "test")
        object.__setattr__(self, "sources", sources)
        object.__setattr__(self, "maker", self._maker())

    def _maker(self) -> Maker | None:
        """What calls the user's factory; None where a module was passed in its place."""
        if isinstance(self.model, partial) and self.owns_step:
            return Maker(self.model.args[0], "make_state")
        return None if isinstance(self.model, nn.Module) else Maker(self.model, "the model factory")

    @classmethod
    def from_step(
        cls,
        make_state: Callable[[float], dict[str, Any]],
        step: Callable[[dict[str, Any], Batch], Any],
        evaluate: Callable[[dict[str, Any], Batch], Any],
        *,
        train: Any,
        valid: Any,
        metric: Callable[[dict[str, Any], Batch], Any] | None = None,
        **more: Any,
    ) -> Problem:
        """A problem that owns its step: two optimizers, an adversary, a loop of one's own.

        Args:
            make_state: from a learning rate to a dict of objects with a `state_dict`: the modules,
                and the optimizers, schedulers or scalers that train them. Called after seeding.
            step: `(state, batch) -> loss`; takes a whole training step, backward and update too.
            evaluate: `(state, batch) -> loss` on held-out examples, without gradients.
            train, valid: as of a `Problem`.
            metric: optional, `(state, batch) -> one value per example, or a scalar`.
            more: further arguments of `Problem`.

        Raises:
            UsageError: as `Problem` does.

        Example:
            >>> import torch
            >>> def make_state(lr):
            ...     model = torch.nn.Linear(1, 1)
            ...     return {"model": model, "sgd": torch.optim.SGD(model.parameters(), lr=lr)}
            >>> def evaluate(state, batch):
            ...     return (state["model"](batch[0]) - batch[1]).square().mean()
            >>> def step(state, batch):
            ...     loss = evaluate(state, batch)
            ...     state["sgd"].zero_grad()
            ...     loss.backward()
            ...     state["sgd"].step()
            ...     return loss
            >>> x = torch.linspace(-1, 1, 64)[:, None]
            >>> problem = Problem.from_step(
            ...     make_state, step, evaluate, train=(x, 3 * x), valid=(x, 3 * x), batch_size=16
            ... )
        """
        for name, part in {"make_state": make_state, "step": step, "evaluate": evaluate}.items():
            if not callable(part):
                raise UsageError(f"{name} is a {type(part).__name__}; it must be a function")
        return cls(
            model=partial(Owned, make_state),
            loss=loss_of(step, evaluate),
            train=train,
            valid=valid,
            metric=None if metric is None else metric_of(metric),
            **more,
        )

    @property
    def owns_step(self) -> bool:
        """Whether it takes its training steps itself: it was made by `from_step`."""
        return isinstance(self.model, partial) and self.model.func is Owned

    @property
    def torch_device(self) -> torch.device:
        """Where trials are trained."""
        assert isinstance(self.device, torch.device)
        return self.device

    @property
    def parts(self) -> dict[str, Any]:
        """Where the user's code and data hang, by name."""
        code = {"model": self.model, "loss": self.loss, "metric": self.metric}
        return {str(name): source for name, source in self.sources.items()} | {
            **code,
            "collate": self.collate,
        }

    def adopt_generators(self) -> bool:
        """Seed the random generators of the user's own with torch's; whether there are new ones.

        Call it inside `undisturbed`.
        """
        return adopt(self, self.parts)

    def make_model(self, seed: int) -> nn.Module:
        """A new model for `seed`, in the modes of training and on the device.

        It shares nothing with the user's objects: what a factory makes anew is used as it is made;
        an existing module is copied, and so is what a factory hands out again. Call it inside
        `undisturbed`.

        Raises:
            UsageError: if it is no module, or cannot be copied.
        """
        self.adopt_generators()
        seeded = partial(seed_everything, self.torch_device, seed, "init")
        model: object
        if self.maker is None:
            seeded()
            model = self.copy_of_the_module()
        elif self.owns_step:
            model = Owned(partial(self.maker.make, seeded), self.torch_device)
        else:
            model = self.maker.make(seeded)
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"the model factory returned a {type(model).__name__}; it must return an nn.Module"
            )
        model = model.to(self.torch_device)
        if any(isinstance(m, nn.Conv2d) for m in model.modules()) and not tied_by_memory(model):
            model = with_channels_last(model)  # which would untie what shares its memory
        adopt(model, {"model": model})
        # A part in evaluation mode was frozen on purpose; a whole model in it was saved like that.
        return model if any(m.training for m in model.modules()) else model.train()

    def copy_of_the_module(self) -> nn.Module:
        """A copy of the module that was given as the model; raises UsageError if there is none."""
        assert isinstance(self.model, nn.Module)
        try:
            return copied(self.model, {"": self.model})
        except UsageError as error:
            raise UsageError(
                f"the model cannot be copied, and each trial trains a copy of a module: {error}; "
                "pass a function without arguments that builds it"
            ) from error

    def batches(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Training batches of an epoch, on the device."""
        for batch in self.sources["train"].epoch(seed, epoch, start):
            yield to_device(batch, self.torch_device)

    def held_out(self, split: Split, examples: int | None = None) -> Iterator[Batch]:
        """Held-out batches in their fixed order, on the device; the first `examples` at least."""
        for counted in self.counted(split, examples):
            yield counted.batch

    def counted(self, split: Split, examples: int | None = None) -> Iterator[Counted]:
        """The batches of `held_out`, each with the number of its examples."""
        seen = 0
        for batch, fetched in self.sources[split].in_order(cut=self.is_cut(split)):
            if examples is not None and seen >= examples:
                return
            count = self.count(batch, fetched, split)
            seen += count
            yield Counted(to_device(batch, self.torch_device), count)

    def is_cut(self, split: Split) -> bool:
        """Whether held-out batches are made smaller than the user's, which must change no number.

        Decided once, as a pure function of the problem, and handed on with it.
        """
        source = self.sources[split]
        if split not in self.cuts:
            self.cuts[split] = (
                isinstance(source, IndexedSource)
                and source.cuttable
                and is_mean_over_examples(self, source)
            )
        return self.cuts[split]

    def count(self, batch: Batch, fetched: int | None, name: str = "train") -> int:
        """How many examples a batch holds: what the user says, what was fetched, what parts tell.

        Args:
            batch: the batch.
            fetched: how many examples its source put into it; None where it does not know.
            name: of the data, for the error.

        Raises:
            UsageError: if nothing tells.
        """
        if self.examples is not None:
            return whole(
                "the number that examples gives for a batch", self.examples(batch), least=1
            )
        count = examples_in(batch) if fetched is None else fetched
        if count is None:
            raise UsageError(
                f"the parts of a batch of {name} have different lengths, so that it cannot be told "
                "how many examples it holds; give the problem examples=, a function from a batch "
                "to that number"
            )
        return count

    def count_training(self, batch: Batch) -> int:
        """How many examples a training batch holds."""
        return self.count(batch, self.sources["train"].batch_examples)

    def evaluate(
        self, model: nn.Module, split: Split, step: int, examples: int | None = None
    ) -> Evaluation:
        """The mean loss and metric of `model`, dropout off, on (the first `examples`) of `split`.

        It draws from a stream of its own and leaves the model as it was.
        """
        self._begin_evaluation(split)
        scores = list(self.scores(model, self.counted(split, examples)))
        losses, sizes = [s.loss for s in scores], [s.examples for s in scores]
        values = [s.values for s in scores if s.values is not None]
        metric = torch.cat(values) if values else None
        binary = metric is not None and bool(((metric == 0) | (metric == 1)).all())
        return Evaluation(
            step=step,
            split=split,
            loss=_mean(losses, sizes),
            metric=None if metric is None else float(metric.mean()),
            examples=sum(sizes),
            correct=int(metric.sum()) if metric is not None and binary else None,
            batch_losses=tuple(losses),
            batch_metrics=() if binary else tuple(float(each.mean()) for each in values),
        )

    def scores(self, model: nn.Module, batches: Iterable[Counted]) -> Iterator[Score]:
        """Loss and metric of each batch, dropout off; drawn from the stream of evaluations."""
        seed_everything(self.torch_device, 0, "evaluation")
        with evaluating(model):
            for given, examples in batches:
                assert examples is not None
                batch = to_device(given, self.torch_device)
                loss = float(self.loss(model, batch))
                measured = None if self.metric is None else self.measure(model, batch, examples)
                yield Score(examples, loss, measured)

    def _begin_evaluation(self, split: Split) -> None:
        """Seed everything for an evaluation, and for the first one what its data makes with it."""
        seed_everything(self.torch_device, 0, "evaluation")
        if split not in (looked := _LOOKED_AT.setdefault(self, set())):
            looked.add(split)
            next(self.held_out(split), None)
            self.adopt_generators()
            seed_everything(self.torch_device, 0, "evaluation")

    def measure(self, model: nn.Module, batch: Batch, examples: int) -> torch.Tensor:
        """The metric of a batch as one float64 value per example; a scalar stands for each."""
        assert self.metric is not None
        given = self.metric(model, batch)
        try:
            value = torch.as_tensor(given).detach().to("cpu")
        except (RuntimeError, TypeError, ValueError):
            value = None
        if value is None or value.is_complex():
            kind = type(given).__name__ if value is None else "complex tensor"
            raise UsageError(
                f"the metric returned a {kind}; it must be one value per example, or a scalar"
            )
        value = value.double()
        if value.ndim == 0:
            return value.expand(examples)
        if value.ndim == 1 and len(value) == examples:
            return value
        raise UsageError(
            f"the metric returned shape {tuple(value.shape)} for {examples} examples; it must be "
            "one value per example, or a scalar; where a batch holds another number of examples, "
            "give the problem examples=, a function from a batch to that number"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off, no gradients, and one forward for the loss and the metric of a batch.

    In evaluation a model is a function of its input, so when the metric passes the tensor that
    the loss just passed, the output is handed out again instead of being computed twice. What the
    model counts, caches or updates meanwhile is put back: it is left as it was, bit for bit.
    """
    modes = [(module, module.training) for module in model.modules()]
    forward = model.forward
    last: list[Any] = []

    def forward_once(*args: Any, **kwargs: Any) -> Any:
        plain = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
        if plain and last and last[0] is args[0] and last[1] == _versions(args[0], last[2]):
            return last[2]
        output = forward(*args, **kwargs)
        last.clear()
        if plain and isinstance(output, torch.Tensor):
            last.extend((args[0], _versions(args[0], output), output))
        return output

    with untouched(roots_of(model)):
        model.eval()
        try:
            with torch.no_grad(), replaced_forward(model, forward_once):
                yield
        finally:
            for module, training in modes:
                module.training = training


@contextmanager
def replaced_forward(model: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Have `model(...)` call another function for a while; the module is left as it was."""
    before, own = model.forward, "forward" in vars(model)
    model.forward = forward
    try:
        yield
    finally:
        if own:
            model.forward = before
        else:
            del model.forward


def _versions(*tensors: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in tensors)


def _mean(values: list[float], sizes: list[int]) -> float:
    if not sizes:
        return math.nan
    return sum(v * n for v, n in zip(values, sizes, strict=True)) / sum(sizes)


def _resolve(device: str | torch.device) -> torch.device:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and not torch.accelerator.is_available():
        accelerator = None
    here = torch.device("cpu") if accelerator is None else accelerator
    if isinstance(device, str) and device == "auto":
        return here
    try:
        asked = torch.device(device)
    except (RuntimeError, TypeError):
        raise UsageError(f"no device is called {device!r}; try 'cpu' or 'cuda'") from None
    there = asked.type == "cpu" or (
        asked.type == here.type and (asked.index or 0) < torch.accelerator.device_count()
    )
    if not there:
        names = ["cpu", *(f"{here.type}:{k}" for k in range(torch.accelerator.device_count()))]
        raise UsageError(
            f"the device {str(asked)!r} is not on this machine, which has {', '.join(names)}"
        )
    return asked
