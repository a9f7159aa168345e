"""The door: run each part of a problem once, name the one that does not work, before any training.

`gather_facts` then works out what later decisions rest on: the loss of knowing nothing and a
fingerprint by which a study recognises its problem.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import nn

from etascope.errors import RAISED, EtascopeError, UsageError
from etascope.problems.bound import endless_fall
from etascope.problems.broadcasting import Crossings, Shapes, describe, shortened
from etascope.problems.chance import find_chance
from etascope.problems.contents import Batch, tensors_of
from etascope.problems.control import Control, flaw_of, zero_gradient
from etascope.problems.cutting import check_last_batches
from etascope.problems.problem import Problem, evaluating
from etascope.problems.tensors import numbers_of
from etascope.randomness import seed_everything, undisturbed
from etascope.records import ProblemFacts


class Parts(NamedTuple):
    """What was made while the parts of a problem were checked.

    `step_seconds` is the time of one forward and backward pass.
    """

    model: nn.Module
    batch: Batch
    held_out: Batch
    loss: float
    step_seconds: float


def inspect(problem: Problem, rung_examples: int) -> ProblemFacts:
    """Check a problem and gather its facts: `check_parts`, then `gather_facts`."""
    return gather_facts(problem, check_parts(problem), rung_examples)


def check_parts(problem: Problem, skip_unusable: bool = False) -> Parts:
    """Run each part of a problem once: two models from seed 0, and a batch of each kind.

    Args:
        problem: what is checked.
        skip_unusable: take the first batch that can be used, where the very first cannot.

    Raises:
        UsageError: naming the part (model, train, loss, metric, valid) and what is wrong with it.
    """
    with undisturbed(problem.torch_device):
        model, again = (_build(problem) for _ in range(2))
        if not _same_weights(model, again):
            raise UsageError(
                "the model factory built two different models under one seed; "
                "draw its weights from torch's, numpy's or Python's global generator"
            )
        batch = _first_batch(problem)
        with named("loss"):
            first = _loss(problem, model, batch)
        flaw = flaw_of(model, first)
        if flaw is not None:
            batch = _usable_batch(problem, flaw, first, skip_unusable)
            model = _build(problem)
            first = _loss(problem, model, batch)
        _check_gradient(problem, model)
        with named("loss"):
            began = time.perf_counter()
            second = _loss(problem, again, batch)
            seconds = time.perf_counter() - began
        if not math.isclose(first, second, rel_tol=0 if _on_cpu(problem) else 1e-4):
            raise UsageError(
                f"the loss gave {first!r} and then {second!r} for the same weights, batch and "
                "seed; make it a function of (model, batch) and torch's generators alone"
            )
        _check_bound(problem, again, batch, second)
        with named("valid data"):
            seed_everything(problem.torch_device, 0, "batch")
            held_out, examples = next(problem.counted("valid"), (None, None))
        if examples is None:
            raise UsageError("valid gives no batch")
        if problem.metric is not None:
            problem.count_training(batch)
            with named("metric"), evaluating(model):
                problem.measure(model, held_out, examples)
        _check_shapes(problem, model, batch, held_out)
        check_last_batches(problem, model)
    return Parts(model, batch, held_out, first, seconds)


def gather_facts(problem: Problem, parts: Parts, rung_examples: int) -> ProblemFacts:
    """What later decisions rest on; a look at the whole held-out set.

    Raises:
        UsageError: if the held-out set cannot be used.
    """
    model, batch, held_out, first, _ = parts
    with undisturbed(problem.torch_device), named("loss, on the valid data,"):
        chance = find_chance(problem, _build(problem), held_out, rung_examples)
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


def _metric_name(metric: object) -> str:
    name = getattr(metric, "__name__", "metric")
    return "metric" if name == "<lambda>" else str(name)


@contextmanager
def named(part: str, remedy: str = "") -> Iterator[None]:
    """Say which of the user's parts raised, and what to do about it."""
    try:
        yield
    except EtascopeError:
        raise
    except RAISED as error:
        text = " ".join(str(error).split())[:300]
        raise UsageError(f"the {part} raised {type(error).__name__}: {text}{remedy}") from error


def _on_cpu(problem: Problem) -> bool:
    return problem.torch_device.type == "cpu"


def _build(problem: Problem) -> nn.Module:
    with named("model factory"):
        model = problem.make_model(0)
    parameters = list(model.parameters())
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise UsageError("the model has lazy parameters; run one forward pass in its factory")
    if not any(p.requires_grad for p in parameters):
        raise UsageError("the model has no parameter to train")
    return model


def _first_batch(problem: Problem) -> Batch:
    with named("train data"):
        seed_everything(problem.torch_device, 0, "batch")
        batch = next(problem.batches(0, 0), None)
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


def _usable_batch(problem: Problem, flaw: str, loss: float, skip_unusable: bool) -> Batch:
    """The first batch that can be used, where the very first cannot and may be skipped.

    Raises:
        UsageError: saying whose fault it is, with the count of such batches.
    """
    control = Control(problem, 0)
    tally = control.tally(0, 0)
    if tally.unusable == 0:  # an own step that a rate so small does not harm is no fault
        return _first_batch(problem)
    if skip_unusable and tally.unusable < tally.batches:
        batches = control.epoch(0, 0)
        return next(b for k, b in enumerate(batches) if control.flaw([b], k) is None)
    blamed = f"on {tally} of the first epoch, the very first among them"
    if tally.unusable < tally.batches:
        raise UsageError(
            f"at the untrained weights {flaw} {blamed}: no learning rate is "
            "to blame; mend the data or the loss there (all labels ignored, a division by 0), or "
            "pass skip_unusable=True to go on without such batches"
        )
    if math.isfinite(loss):
        raise UsageError(
            f"at the untrained weights {flaw}, though the loss is {loss:.4g}, "
            f"on {tally}: the code is to blame and no learning rate; look for a square root, "
            "norm, division or logarithm at 0, also in the branch that a where() does not take"
        )
    raise UsageError(
        f"the loss of the untrained model is {loss!r}, on {tally}; check the data and the loss"
    )


def _check_shapes(problem: Problem, model: nn.Module, batch: Batch, held_out: Batch) -> None:
    """Make sure that outputs and targets do not broadcast against each other."""
    if problem.owns_step:
        return
    watched = [("loss", problem.loss, batch), ("loss", problem.loss, held_out)]
    if problem.metric is not None:
        watched.append(("metric", problem.metric, held_out))
    for part, function, given in watched:
        found = _crossing(problem, model, function, given)
        if found is None:
            continue
        # A length that happens to equal the number of examples does not shrink with it.
        again = _crossing(problem, model, function, shortened(given))
        if again is not None or min(map(len, found)) > 1:
            raise UsageError(describe(found, part))


def _crossing(
    problem: Problem, model: nn.Module, function: Callable[[nn.Module, Batch], Any], batch: Batch
) -> Shapes | None:
    """The shapes that a loss or a metric crosses; None too where it cannot run under watch."""
    crossings = Crossings(model, batch)
    seed_everything(problem.torch_device, 0, "check")
    marking = _marking(model, crossings)
    with suppress(*RAISED), evaluating(model), torch.enable_grad(), marking, crossings:
        function(model, batch)
    return crossings.found


@contextmanager
def _marking(model: nn.Module, crossings: Crossings) -> Iterator[None]:
    hook = model.register_forward_hook(lambda module, inputs, output: crossings.mark(output))
    try:
        yield
    finally:
        hook.remove()


def _check_bound(problem: Problem, model: nn.Module, batch: Batch, start: float) -> None:
    """Make sure that larger outputs do not lower the loss without end; moves the model."""
    if problem.owns_step or problem.chance is not None:
        return

    def loss() -> float:
        seed_everything(problem.torch_device, 0, "check")
        value = problem.loss(model, batch)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    try:
        fall = endless_fall(model, loss, start)
    except RAISED:  # a loss or a model may refuse such weights
        return
    if fall is not None:
        shown = ", ".join(f"{value:.3g}" for value in fall[:5])
        raise UsageError(
            "the loss has no lower bound: steps down its gradient, each ten times as long, give "
            f"{shown} and so on, so that the largest outputs win whatever they say; look for a "
            "flipped sign or a missing log_softmax (nll_loss wants log-probabilities), or give "
            "chance= the held-out loss of knowing nothing if it is meant so"
        )


def _check_gradient(problem: Problem, model: nn.Module) -> None:
    """Make sure that some batch of the first epoch gives a gradient that is not 0 throughout."""
    if problem.owns_step or not zero_gradient(model):
        return
    tried = 0
    for number, batch in enumerate(Control(problem, 0).epoch(0, 0)):
        model.zero_grad(set_to_none=True)
        seed_everything(problem.torch_device, 0, "step", number)
        with named("loss"):
            problem.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        if not zero_gradient(model):
            return
        tried += 1
    raise UsageError(
        f"the gradient of the untrained model is 0 in every parameter, on {tried} batches: no "
        "learning rate can train it; look for an argmax, round, sign or comparison between the "
        "model and the loss, or for units that are all inactive"
    )


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
