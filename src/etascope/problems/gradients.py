"""The first gradients, at the untrained weights: what is wrong there is no rate's fault."""

from __future__ import annotations

import math

from torch import nn

from etascope.errors import UsageError
from etascope.problems.contents import Batch
from etascope.problems.control import Control, zero_gradient
from etascope.problems.problem import Problem
from etascope.randomness import seed_everything


def usable_batch(problem: Problem, flaw: str, loss: float, skip_unusable: bool) -> Batch:
    """The first batch that can be used, where the very first cannot and may be skipped.

    Raises:
        UsageError: saying whose fault it is, with the count of such batches.
    """
    control = Control(problem, 0)
    tally = control.tally(0, 0)
    if tally.unusable == 0:  # an own step that a rate so small does not harm is no fault
        return next(control.epoch(0, 0))
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
        f"the loss of the untrained model is {loss!r}, on {tally}; check the data and the loss, "
        "for a logarithm, a division or a root of what may be 0 or negative"
    )


def check_gradient(problem: Problem, model: nn.Module) -> None:
    """Make sure that some batch of the first epoch gives a gradient that is not 0 throughout."""
    if problem.owns_step or not zero_gradient(model):
        return
    tried = 0
    for number, batch in enumerate(Control(problem, 0).epoch(0, 0)):
        model.zero_grad(set_to_none=True)
        seed_everything(problem.torch_device, 0, "step", number)
        problem.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        if not zero_gradient(model):
            return
        tried += 1
    raise UsageError(
        f"the gradient of the untrained model is 0 in every parameter, on {tried} batches: no "
        "learning rate can train it; look for an argmax, round, sign or comparison between the "
        "model and the loss, or for units that are all inactive"
    )
