"""The door: run each part of a problem once, name the one that does not work, before any training.

`gather_facts` then works out what later decisions rest on: the loss of knowing nothing and a
fingerprint by which a study recognises its problem.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature as inspect_signature
from typing import NamedTuple

import torch
from torch import nn

from etascope.errors import RAISED, EtascopeError, UsageError, text_of
from etascope.problems.bound import check_bound
from etascope.problems.broadcasting import check_shapes
from etascope.problems.chance import find_chance
from etascope.problems.contents import Batch, tensors_of
from etascope.problems.control import flaw_of, without_unusable
from etascope.problems.cutting import check_last_batches
from etascope.problems.differentiating import with_gradients
from etascope.problems.gradients import check_gradient, usable_batch
from etascope.problems.mistakes import describe as describe_batch
from etascope.problems.mistakes import remedy, where
from etascope.problems.problem import Problem, evaluating
from etascope.randomness import seed_everything, undisturbed
from etascope.reach import names_of, prints_of
from etascope.records import Chance, ProblemFacts
from etascope.tensors import numbers_of


class Parts(NamedTuple):
    """What was made while the parts of a problem were checked.

    `problem` is the one to go on with: without what is to be left out of it, and with gradients in
    evaluations that take some. `step_seconds` is the time of one forward and backward pass.
    """

    problem: Problem
    model: nn.Module
    batch: Batch
    held_out: Batch
    loss: float
    step_seconds: float


def inspect(problem: Problem, rung_examples: int) -> ProblemFacts:
    """Check a problem and gather its facts: `check_parts`, then `gather_facts`."""
    parts = check_parts(problem)
    return gather_facts(parts.problem, parts, rung_examples)


def check_parts(problem: Problem, skip_unusable: bool = False) -> Parts:
    """Run each part of a problem once: two models from seed 0, and a batch of each kind.

    Args:
        problem: what is checked.
        skip_unusable: take the first batch that can be used, where the very first cannot.

    Raises:
        UsageError: naming the part (model, train, loss, metric, valid) and what is wrong with it.
    """
    with undisturbed(problem.torch_device):
        _check_kinds(problem)
        model, again = (_build(problem) for _ in range(2))
        if not _same_weights(model, again):
            raise UsageError(
                "the model factory built two different models under one seed; "
                "draw its weights from torch's, numpy's or Python's global generator"
            )
        batch = _first_batch(problem)
        with named("loss", _remedy(problem, "loss", model, batch)):
            before = prints_of(problem.parts)
            first = _loss(problem, model, batch)
        flaw = flaw_of(model, first)
        if flaw is not None:
            batch = usable_batch(problem, flaw, first, skip_unusable)
            model = _build(problem)
            first = _loss(problem, model, batch)
        check_gradient(problem, model)
        with named("loss"):
            began = time.perf_counter()
            second = _loss(problem, again, batch)
            seconds = time.perf_counter() - began
        if not math.isclose(first, second, rel_tol=0 if _on_cpu(problem) else 1e-4):
            after = prints_of(problem.parts).items()
            names = names_of([path for path, shown in after if before.get(path) != shown])
            raise UsageError(
                f"the loss gave {first!r} and then {second!r} for the same weights, batch and "
                f"seed{names and f', while {names} changed'}; make it a function of (model, batch) "
                "and torch's generators alone"
            )
        check_bound(problem, again, batch, second)
        held_out, examples = _first_held_out(problem)
        check_shapes(problem, model, batch, held_out)
        problem = with_gradients(problem, model, batch, held_out)
        if problem.metric is not None:
            problem.count_training(batch)
            remedy = _remedy(problem, "metric", model, held_out)
            with named("metric", remedy), evaluating(model):
                problem.measure(model, held_out, examples)
        check_last_batches(problem, model)
        if skip_unusable and not problem.owns_step:
            problem, _ = without_unusable(problem)
            held_out, _ = _first_held_out(problem)
    return Parts(problem, model, batch, held_out, first, seconds)


def gather_facts(problem: Problem, parts: Parts, rung_examples: int) -> ProblemFacts:
    """What later decisions rest on; a look at the whole held-out set.

    Raises:
        UsageError: if the held-out set cannot be used.
    """
    _, model, batch, held_out, first, _ = parts
    with undisturbed(problem.torch_device), named("loss, on the valid data,"):
        chance = find_chance(problem, _build(problem), held_out, rung_examples)
        _check_classes(problem, chance, first)
    return ProblemFacts(
        name=problem.name,
        fingerprint=_fingerprint(_weights(model), (batch, held_out), (first, chance.loss)),
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        batch_shapes=tuple(tuple(t.shape) for t in tensors_of(batch)),
        metric=None if problem.metric is None else _metric_name(problem.metric),
        higher_is_better=problem.higher_is_better,
        device=str(problem.device),
        chance=chance,
    )


def _check_classes(problem: Problem, chance: Chance, initial: float) -> None:
    """Make sure that a held-out set of labels holds more than one class.

    Only looked at where a constant output is (nearly) never wrong there.
    """
    constant = chance.source == "constant prediction" and chance.loss <= 1e-6 * abs(initial)
    if not constant and not any(share == 1 for _, share in chance.majority):
        return
    labels: set[int] = set()
    for batch in problem.held_out("valid"):
        targets = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
        if not isinstance(targets, torch.Tensor) or targets.is_floating_point():
            return
        labels |= set(torch.unique(targets).tolist())
        if len(labels) > 1:
            return
    raise UsageError(
        f"every held-out label is {labels.pop()}, so that a constant output is never wrong and no "
        "rate can be told from another; hold examples of every class out: shuffle before splitting"
    )


def _metric_name(metric: object) -> str:
    name = getattr(metric, "__name__", "metric")
    return "metric" if name == "<lambda>" else str(name)


@contextmanager
def named(part: str, remedy: str | Callable[[], str] = "") -> Iterator[None]:
    """Say which of the user's parts raised, where, and what to do about it."""
    try:
        yield
    except EtascopeError:
        raise
    except RAISED as error:
        text = text_of(error, 300).rstrip(".")
        tail = remedy if isinstance(remedy, str) else remedy()
        raise UsageError(f"the {part} raised {text}{where(error)}{tail}") from error


def _check_kinds(problem: Problem) -> None:
    """Make sure that loss and metric are no classes; what they make would be taken for a number."""
    for part in ("loss", "metric"):
        given = getattr(problem, part)
        if isinstance(given, type) and issubclass(given, nn.Module):
            name = given.__name__
            raise UsageError(
                f"{part} is the class {name}; make one, and pass a function such as "
                f"lambda model, batch: {name}()(model(batch[0]), batch[1])"
            )


def _remedy(problem: Problem, part: str, model: nn.Module, batch: Batch) -> Callable[[], str]:
    """What to say of an exception of a part; it tries what would work."""

    def run(other: Batch) -> None:
        if part == "loss":
            _loss(problem, model, other)
            return
        with evaluating(model):
            assert problem.metric is not None
            problem.metric(model, other)

    if problem.owns_step:
        return lambda: f"; the batch is {describe_batch(batch)}"
    return lambda: remedy(part, getattr(problem, part), model, batch, run)


def _on_cpu(problem: Problem) -> bool:
    return problem.torch_device.type == "cpu"


def _build(problem: Problem) -> nn.Module:
    hint = "; it is called without arguments"
    if isinstance(problem.model, type):
        hint += (
            f", so pass a function that makes one, such as lambda: {problem.model.__name__}(...)"
        )
    with named("model factory", "" if _callable_alone(problem.model) else hint):
        model = problem.make_model(0)
    parameters = list(model.parameters())
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise UsageError("the model has lazy parameters; run one forward pass in its factory")
    if not any(p.requires_grad for p in parameters):
        raise UsageError("the model has no parameter to train")
    return model


def _callable_alone(factory: object) -> bool:
    """Whether a factory can be called without arguments, as far as its signature says."""
    try:
        inspect_signature(factory).bind()  # type: ignore[arg-type]
    except TypeError:
        return False
    except ValueError:  # what is written in C may have no signature
        return True
    return True


def _first_held_out(problem: Problem) -> tuple[Batch, int]:
    with named("valid data"):
        seed_everything(problem.torch_device, 0, "batch")
        batch, examples = next(problem.counted("valid"), (None, None))
        if problem.adopt_generators():  # made with the first batch: drawn again, now seeded
            return _first_held_out(problem)
    if examples is None:
        raise UsageError("valid gives no batch")
    return batch, examples


def _first_batch(problem: Problem) -> Batch:
    with named("train data"):
        seed_everything(problem.torch_device, 0, "batch")
        batch = next(problem.batches(0, 0), None)
        if problem.adopt_generators():  # made with the first batch: drawn again, now seeded
            return _first_batch(problem)
    if batch is None:
        raise UsageError("train gives no batch")
    return batch


def _loss(problem: Problem, model: nn.Module, batch: Batch) -> float:
    """The loss of a batch, passed backward; raises UsageError for what cannot be trained on."""
    if problem.owns_step:
        seed_everything(problem.torch_device, 0, "check")
        return float(problem.loss(model, batch))
    loss = _forward(problem, model, batch)
    strangers = _strangers(loss, model, batch)
    if strangers:
        # A tensor that the loss makes anew, to differentiate by its input, is none.
        again = _strangers(_forward(problem, model, batch), model, batch)
        strangers = [t for t in strangers if any(t is other for other in again)]
    if strangers:
        shapes = ", ".join(str(tuple(t.shape)) for t in strangers[:3])
        raise UsageError(
            "the loss depends on parameters outside the model it is given (of shape "
            f"{shapes}), which no optimizer would train; make them part of the model, "
            "or detach them"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    if all(p.grad is None for p in model.parameters()):
        raise UsageError("the loss gives no parameter of the model a gradient")
    return float(loss.detach())


def _forward(problem: Problem, model: nn.Module, batch: Batch) -> torch.Tensor:
    seed_everything(problem.torch_device, 0, "check")
    loss = problem.loss(model, batch)
    if not isinstance(loss, torch.Tensor):
        raise UsageError(f"the loss returned a {type(loss).__name__}; it must be a scalar tensor")
    if loss.ndim:
        raise UsageError(
            f"the loss returned a tensor of shape {tuple(loss.shape)}; take its mean over the batch"
        )
    if not loss.requires_grad:
        raise UsageError("the loss does not depend on any parameter of the model it was given")
    return loss


def _strangers(loss: torch.Tensor, model: nn.Module, batch: Batch) -> list[torch.Tensor]:
    """The tensors that backward would give a gradient, and that neither model nor batch holds."""
    known = {id(t) for t in (*model.parameters(), *tensors_of(batch))}
    found, waiting, seen = [], [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = node.variable if type(node).__name__ == "AccumulateGrad" else None  # type: ignore[attr-defined]
        if leaf is not None and id(leaf) not in known:
            found.append(leaf)
        waiting += [following for following, _ in node.next_functions]
    return found


def _weights(model: nn.Module) -> list[torch.Tensor]:
    return [t.detach() for t in (*model.parameters(), *model.buffers())]


def _same_weights(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = _weights(model), _weights(other)
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and a.dtype == b.dtype and numbers_of(a) == numbers_of(b)
        for a, b in zip(ours, theirs, strict=True)
    )


def _fingerprint(
    weights: list[torch.Tensor], batches: tuple[Batch, Batch], losses: tuple[float, float]
) -> str:
    """SHA-256 over the initial weights, the first batches, the first loss and that of chance.

    Losses are rounded to four digits: another processor may add in another order.
    """
    digest = hashlib.sha256()
    for tensor in (*weights, *tensors_of(batches)):
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(numbers_of(tensor))
    digest.update("".join(f"{loss:.4g}" for loss in losses).encode())
    return digest.hexdigest()
