"""The door: run each part of a problem once, name the one that does not work, before any training.

`gather_facts` then works out what later decisions rest on: the loss of knowing nothing and a
fingerprint by which a study recognises its problem.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from etascope.errors import RAISED, EtascopeError, UsageError, text_of
from etascope.problems.batches import Batch, examples_in, tensors_of
from etascope.problems.chance import find_chance
from etascope.problems.problem import Problem, evaluating
from etascope.randomness import seed_everything, undisturbed
from etascope.reach import names_of, prints_of
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


def check_parts(problem: Problem) -> Parts:
    """Run each part of a problem once: two models from seed 0, and a batch of each kind.

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
        batch = _first_batch(problem, "train")
        with named("loss"):
            before = prints_of(problem.parts)
            first = _loss(problem, model, batch)
            began = time.perf_counter()
            second = _loss(problem, again, batch)
            seconds = time.perf_counter() - began
        if not math.isfinite(first):
            raise UsageError(
                f"the loss of the untrained model is {first!r}; check the data and the loss"
            )
        if not math.isclose(first, second, rel_tol=0 if _on_cpu(problem) else 1e-4):
            after = prints_of(problem.parts).items()
            names = names_of([path for path, shown in after if before.get(path) != shown])
            raise UsageError(
                f"the loss gave {first!r} and then {second!r} for the same weights, batch and "
                f"seed{names and f', while {names} changed'}; make it a function of (model, batch) "
                "and torch's generators alone"
            )
        held_out = _first_batch(problem, "valid")
        if problem.metric is not None:
            with named("metric"), evaluating(model):
                problem.measure(model, held_out, examples_in(held_out))
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
        raise UsageError(f"the {part} raised {text_of(error, 300)}{remedy}") from error


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


def _first_batch(problem: Problem, split: str) -> Batch:
    with named(f"{split} data"):
        seed_everything(problem.torch_device, 0, "batch")
        source = problem.batches(0, 0) if split == "train" else problem.held_out("valid")
        batch = next(iter(source), None)
        if problem.adopt_generators():  # made with the first batch: drawn again, now seeded
            return _first_batch(problem, split)
    if batch is None:
        raise UsageError(f"{split} gives no batch")
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
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(ours, theirs, strict=True)
    )


def _fingerprint(
    weights: list[torch.Tensor], batches: tuple[Batch, Batch], losses: tuple[float, float]
) -> str:
    """SHA-256 over the initial weights, the first batches, the first loss and that of chance.

    Losses are rounded to four digits: another processor may add in another order.
    """
    digest = hashlib.sha256()
    for tensor in (*weights, *tensors_of(batches)):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update("".join(f"{loss:.4g}" for loss in losses).encode())
    return digest.hexdigest()
