"""Whether the models of a problem can be trained as one program, shown by trying one step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from etascope.attributes.kept import Attributes
from etascope.engines.stack import Stack
from etascope.errors import RAISED, text_of
from etascope.plan import Plan
from etascope.problems.contents import Batch, tensors_of
from etascope.problems.owned import roots_of
from etascope.problems.problem import Problem
from etascope.problems.stream import BatchStream
from etascope.randomness import undisturbed
from etascope.records import TrialId
from etascope.trial import Trial, with_extra_state

RATES = (1e-3, 2e-3)  # of the two trials, which are never updated
STRETCH = 1 + 2**-6  # what tells their weights apart


def obstacle(problem: Problem, plan: Plan) -> str | None:
    """Why models of this problem cannot be trained as one program; None where they can.

    Two models with different weights take the first gradients of seed 0 plainly and as a stack.
    """
    if problem.owns_step:
        return "the problem owns its step"
    if plan.skip_unusable:
        return "a rate that skips a batch goes on with another one than the others"
    with undisturbed(problem.torch_device):
        try:
            return _compare(problem, plan)
        except RAISED as error:  # whatever it is, such a model is trained alone
            return in_short(error)


def in_short(error: BaseException) -> str:
    """The first sentence of an error."""
    return text_of(error).split(". ")[0][:200]


def _compare(problem: Problem, plan: Plan) -> str | None:
    stream = BatchStream(problem, 0, plan.accumulate)
    batches, _ = stream.take(0, (0, 0))
    given = _versions(batches)
    trials = [Trial(problem, plan, TrialId(rate, 0), None, stream) for rate in RATES]
    courses = [trial.course(1) for trial in trials]
    if any(next(course, None) is None for course in courses):
        return "its first step fails"
    _stretch(trials[1].model)
    buffers = [[b.clone() for b in trial.model.buffers()] for trial in trials]
    kept = Attributes(roots_of(trials[0].model), problem.parts)
    plain = [_outcome(trial, trial.backpropagate(batches)) for trial in trials]
    if _versions(batches) != given:
        return "its loss or metric changes the batch in place"
    elsewhere = _kept_elsewhere(trials[0].model, kept)
    if elsewhere is not None:
        return elsewhere
    for trial, before in zip(trials, buffers, strict=True):
        for buffer, value in zip(trial.model.buffers(), before, strict=True):
            buffer.copy_(value)
    losses = Stack(trials).backpropagate(batches)
    stacked = [_outcome(trial, loss) for trial, loss in zip(trials, losses, strict=True)]
    return _disagreement(stacked, plain, _tolerance(problem, plan, trials[0].model))


def _kept_elsewhere(model: nn.Module, before: Attributes) -> str | None:
    """What of a model is neither parameter nor buffer and yet its own: a stack has one for all."""
    for name, _ in with_extra_state(model):
        return f"{name or 'the model'} keeps a state that is no tensor"
    changed, lost = before.changed()
    for path in (*changed, *lost):
        return f"a step changes {path.removeprefix('model.')}, which is no buffer"
    return None


def _disagreement(stacked: list[Outcome], plain: list[Outcome], tolerance: float) -> str | None:
    if not all(loss.isfinite() for alone in plain for loss in alone.losses):
        return "its first loss is not finite"
    for ours, theirs in zip(stacked, plain, strict=True):
        for part, value in ours._asdict().items():
            if not _close(value, getattr(theirs, part), tolerance):
                return f"its {part} differ there"
    return None


class Outcome(NamedTuple):
    """What a forward and a backward pass gave."""

    losses: list[Tensor]
    gradients: list[Tensor | None]
    buffers: list[Tensor | None]


def _outcome(trial: Trial, loss: float) -> Outcome:
    gradients = _copies(p.grad for p in trial.model.parameters())
    return Outcome([torch.tensor(loss)], gradients, _copies(trial.model.buffers()))


def _copies(tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    return [None if tensor is None else tensor.detach().clone() for tensor in tensors]


def _versions(batches: list[Batch]) -> list[int]:
    return [tensor._version for tensor in tensors_of(batches)]


def _stretch(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point():
                p.mul_(STRETCH)


def _close(
    ours: Iterable[Tensor | None], theirs: Iterable[Tensor | None], tolerance: float
) -> bool:
    """Whether tensors agree within a share of their norm, or of a hundredth of the largest one.

    The second is for what is 0 but for rounding, such as the gradient of a bias before BatchNorm.
    """
    pairs = list(zip(ours, theirs, strict=True))
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    found = [(_wide(a), _wide(b)) for a, b in pairs if a is not None and b is not None]
    floor = max((float(b.norm()) for _, b in found), default=0.0) / 100
    return all(float((a - b).norm()) <= tolerance * max(float(b.norm()), floor) for a, b in found)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.cpu().to(torch.complex128)  # holds a value of any other type


def _tolerance(problem: Problem, plan: Plan, model: nn.Module) -> float:
    """Above the rounding of the arithmetic in use, far below what another mask would change."""
    if plan.precision == "bfloat16":
        return 0.05
    if all(p.dtype == torch.float64 for p in model.parameters()):
        return 1e-9
    return 0.01 if problem.torch_device.type == "cpu" else 0.02  # an accelerator may round to TF32
