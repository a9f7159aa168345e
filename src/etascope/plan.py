"""How trials are trained: the `Plan`, and the grammar of learning rates."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from etascope.arguments import items, positive, whole
from etascope.errors import UsageError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    OptimizerFactory = Callable[[nn.Module, float], Optimizer]
    ScheduleFactory = Callable[[Optimizer, int], LRScheduler]

SCHEDULES = ("constant", "cosine", "step", "linear-warmup", "one-cycle")
ENGINES = ("auto", "serial", "processes", "stacked", "ray")
PRECISIONS = ("float32", "bfloat16")
STEPS = 1000  # the horizon where the command line is given none
BUDGET = 12.0  # what `find` may spend, in full trainings: a tenth of 25 rates with 5 seeds
# The built-in experiment trains two rates to the horizon, and pauses a ladder of others.
DEMO_BUDGET = 5.0  # of which a part is trained already
HIGH, LOW, LADDER = 0.5, 0.001, (1e-5, 1e-4, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Plan:
    """How every trial of a study is trained; the learning rate and the seed come on top.

    Args:
        steps: the horizon: how many optimizer steps a full training has, >= 1.
        optimizer: a name of `etascope.optim.registry`, or a factory `(model, lr) -> Optimizer`.
        schedule: `constant`, `cosine` (to 0), `step` (a tenth after each third), `linear-warmup`
            (over the first tenth) or `one-cycle`, all of them torch's own, or a factory
            `(optimizer, steps) -> LRScheduler`. The learning rate of a trial is the peak.
        clip: the largest gradient norm, or None.
        accumulate: batches whose gradients are averaged for one step, >= 1.
        weight_decay: handed to a named optimizer; None for that optimizer's own default.
        rungs: the steps at which trials are evaluated and saved, which bounds what a kill can
            cost. By default every tenth of the horizon; the horizon is always one.
        probe_every: the metric of the training batch is recorded every so many steps.
        rung_examples: held-out examples used at rungs (all of them at the horizon).
        precision: `float32`, or `bfloat16`: torch's autocast, with float32 weights and optimizer.
        skip_unusable: take the next batch where one is not finite, neither at the weights of the
            step nor at the untrained ones, and leave such held-out batches out for every trial;
            without it, they end a trial with the cause `data`. How many were skipped is recorded.

    Raises:
        UsageError: if a value is out of its range; the message names it.
    """

    steps: int
    optimizer: str | OptimizerFactory = "adam"
    schedule: str | ScheduleFactory = "constant"
    clip: float | None = None
    accumulate: int = 1
    weight_decay: float | None = None
    rungs: tuple[int, ...] = ()
    probe_every: int = 10
    rung_examples: int = 1000
    precision: str = "float32"
    skip_unusable: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "probe_every", "rung_examples"):
            object.__setattr__(self, name, whole(name, getattr(self, name), least=1))
        if self.clip is not None:
            object.__setattr__(self, "clip", positive("clip", self.clip))
        if self.weight_decay is not None:
            decay = positive("weight_decay", self.weight_decay, or_zero=True)
            object.__setattr__(self, "weight_decay", decay)
        for name in ("optimizer", "schedule"):
            if not (isinstance(getattr(self, name), str) or callable(getattr(self, name))):
                raise UsageError(_no_factory(name, getattr(self, name)))
        rungs = items(self.rungs)
        if rungs is None:
            raise UsageError(f"rungs is {self.rungs!r}; pass a list of steps")
        if isinstance(self.optimizer, str):
            from etascope.optim.registry import get_optimizer

            get_optimizer(self.optimizer)
        elif self.weight_decay is not None:
            raise UsageError("weight_decay goes with a named optimizer; set it in your factory")
        if isinstance(self.schedule, str) and self.schedule not in SCHEDULES:
            raise UsageError(
                f"no schedule is called {self.schedule!r}; choose from {', '.join(SCHEDULES)}"
            )
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"precision is {self.precision!r}; choose from {', '.join(PRECISIONS)}"
            )
        if not isinstance(self.skip_unusable, bool):
            raise UsageError(f"skip_unusable is {self.skip_unusable!r}; choose True or False")
        steps = {whole("a rung", rung, least=1) for rung in rungs} or set(tenths(self.steps))
        inside = {rung for rung in steps if rung < self.steps}
        object.__setattr__(self, "rungs", (*sorted(inside), self.steps))

    def make_optimizer(self, model: nn.Module, lr: float) -> Optimizer:
        """A new optimizer for `model` at the peak rate `lr`."""
        if not isinstance(self.optimizer, str):
            return self.optimizer(model, lr)
        from etascope.optim.registry import get_optimizer

        trainable = [p for p in model.parameters() if p.requires_grad]
        return get_optimizer(self.optimizer).make(trainable, lr, self.weight_decay)

    def make_schedule(self, optimizer: Optimizer) -> LRScheduler | None:
        """A new scheduler for `optimizer`, or None for a constant rate."""
        if not isinstance(self.schedule, str):
            return self.schedule(optimizer, self.steps)
        from torch.optim import lr_scheduler as torch_schedules

        peaks = [float(group["lr"]) for group in optimizer.param_groups]
        if self.schedule == "cosine":
            return torch_schedules.CosineAnnealingLR(optimizer, T_max=self.steps)
        if self.schedule == "step":
            return torch_schedules.StepLR(optimizer, step_size=math.ceil(self.steps / 3))
        if self.schedule == "linear-warmup":
            warmup = math.ceil(self.steps / 10)
            return torch_schedules.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        if self.schedule == "one-cycle":
            # torch's own needs two steps to have a phase at all.
            total = max(self.steps, 2)
            return torch_schedules.OneCycleLR(optimizer, peaks, total, cycle_momentum=False)
        return None

    def describe(self) -> dict[str, Any]:
        """The plan as JSON values; a factory is named, never stored."""
        return {
            "steps": self.steps,
            "optimizer": _name(self.optimizer),
            "schedule": _name(self.schedule),
            "clip": self.clip,
            "accumulate": self.accumulate,
            "weight_decay": self.weight_decay,
            "rungs": list(self.rungs),
            "probe_every": self.probe_every,
            "rung_examples": self.rung_examples,
            "precision": self.precision,
            "skip_unusable": self.skip_unusable,
        }


def tenths(steps: int) -> tuple[int, ...]:
    """The rungs of a horizon where none are named: every tenth of it, and its end.

    >>> tenths(5)
    (1, 2, 3, 4, 5)
    """
    return tuple(sorted({steps * k // 10 for k in range(1, 11)} - {0}))


def demo_targets(steps: int, ladder: Iterable[float] = LADDER) -> dict[float, int]:
    """The rates of the built-in experiment and the step of each: the ladder stops at a fifth.

    >>> demo_targets(1000, [0.1])
    {0.001: 1000, 0.5: 1000, 0.1: 200}
    """
    pause = max(1, steps // 5)
    return {LOW: steps, HIGH: steps, **{lr: pause for lr in ladder if lr not in (LOW, HIGH)}}


def demo_rungs(steps: int, targets: Mapping[float, int], stops: Iterable[int]) -> set[int]:
    """The rungs of the built-in experiment: of its sweep, and the stops of its race.

    One study serves both: what the one has trained to a stop of the other is not trained again.
    """
    return {*tenths(steps), *targets.values(), *stops}


def logspace(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` rates from `low` to `high`, both included, equally spaced in log rate.

    The rates between the ends are rounded to six significant digits, so that they can be typed.

    Raises:
        UsageError: for ends that are no rates, or more rates than fit between them.

    >>> logspace(1e-3, 1, 4)
    (0.001, 0.01, 0.1, 1.0)
    """
    low, high = positive("the lowest rate", low), positive("the highest rate", high)
    count = whole("the number of rates", count, least=1)
    if count == 1 and low != high:
        raise UsageError(f"one rate cannot span {low:g} to {high:g}; ask for at least two")
    if count > 1 and low == high:
        raise UsageError(f"{count} rates cannot all be {low:g}; give two ends that differ")
    if count == 1:
        return (low,)
    first, last = math.log(low), math.log(high)
    inner = (
        float(f"{math.exp(first + (last - first) * k / (count - 1)):.6g}")
        for k in range(1, count - 1)
    )
    rates = (low, *inner, high)
    if rates != tuple(sorted(set(rates), reverse=low > high)):
        raise UsageError(
            f"{count} rates from {low} to {high} do not differ in six digits; ask for fewer"
        )
    return rates


def parse_lrs(texts: Iterable[str]) -> tuple[float, ...]:
    """Read rates as the command line takes them: `0.5,0.001`, or `1e-5:1:11` (log-spaced).

    >>> parse_lrs(["0.5,0.001", "1e-2:1:3"])
    (0.5, 0.001, 0.01, 0.1, 1.0)

    Raises:
        UsageError: naming the text that is no rate.
    """
    rates: list[float] = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        try:
            if ":" in part:
                low, high, count = part.split(":")
                rates.extend(logspace(float(low), float(high), int(count)))
            else:
                rates.append(float(part))
        except UsageError:
            raise
        except ValueError:
            raise UsageError(
                f"{part!r} is no learning rate; write 0.001, or LOW:HIGH:COUNT such as 1e-5:1:11"
            ) from None
    return tuple(rates)


def check_targets(lrs: Iterable[float] | Mapping[float, int], steps: int) -> dict[float, int]:
    """The step that each rate is trained to, in the order given.

    Args:
        lrs: rates, each trained to the horizon, or a mapping from rate to the step it stops at.
        steps: the horizon.

    Raises:
        UsageError: for no rate, a rate that is not a positive finite number, a duplicate, or a
            step beyond the horizon.
    """
    rates = items(lrs)
    if rates is None:
        raise UsageError(f"lrs is {lrs!r}; pass a list of rates such as [0.1, 0.01]")
    if not rates:
        raise UsageError("there is no learning rate to train; pass at least one")
    targets: dict[float, int] = {}
    for given in rates:
        lr = positive("a learning rate", given)
        if lr in targets:
            raise UsageError(f"the learning rate {lr:g} is given twice; name each once")
        asked = lrs[given] if isinstance(lrs, Mapping) else steps
        targets[lr] = whole(f"the step of rate {lr:g}", asked, least=1)
        if targets[lr] > steps:
            raise UsageError(f"rate {lr:g} is to stop at {asked}, beyond the horizon {steps}")
    return targets


def check_seeds(seeds: int | Iterable[int]) -> tuple[int, ...]:
    """The seeds of a study: `3` means 0, 1 and 2; or name each.

    >>> check_seeds(3)
    (0, 1, 2)
    """
    named = items(seeds)
    if named is None:
        return tuple(range(whole("seeds", seeds, least=1)))
    chosen = tuple(whole("a seed", seed, least=0) for seed in named)
    if not chosen or len(set(chosen)) != len(chosen):
        raise UsageError("seeds must name at least one seed, each once")
    if max(chosen) >= 1 << 64:
        raise UsageError("a seed is too large; use seeds below 2 ** 64")
    return chosen


def _no_factory(name: str, given: object) -> str:
    """What to say of an optimizer or a schedule in the place of what makes one."""
    kinds = [kind.__name__ for kind in type(given).__mro__]
    kind = kinds[0]
    if "Optimizer" in kinds:
        passed = f"lambda model, lr: torch.optim.{kind}(model.parameters(), lr=lr)"
        return f"{name} is an {kind} of one model already; pass a factory such as {passed}"
    if "LRScheduler" in kinds:
        passed = f"lambda optimizer, steps: torch.optim.lr_scheduler.{kind}(optimizer, ...)"
        return f"{name} is a {kind} of one optimizer already; pass a factory such as {passed}"
    return f"{name} is {reprlib.repr(given)}; pass a name or a factory"


def _name(choice: object) -> str:
    if isinstance(choice, str):
        return choice
    module = getattr(choice, "__module__", None) or "?"
    return f"{module}:{getattr(choice, '__qualname__', type(choice).__qualname__)}"
