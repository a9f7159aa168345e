"""What would help where no rate learned: worked out from the trials' own records."""

from __future__ import annotations

from collections.abc import Sequence

from etascope.diagnosis.course import rise, still_falls, training_fit
from etascope.diagnosis.faults import rate_independent
from etascope.diagnosis.learning import gain
from etascope.records import Chance, History
from etascope.words import number, rate

CONSTANT_LOSS = 1e-6  # a baseline no larger than that, in every batch, leaves nothing to learn
AT_BASELINE = 0.05  # of the baseline: a loss that near is that of a constant prediction


def one_answer(chance: Chance) -> bool:
    """Whether one constant prediction is right about every held-out example."""
    losses = chance.batch_losses
    return (
        chance.source == "constant prediction"
        and len(losses) > 0
        and max(map(abs, losses)) < CONSTANT_LOSS
    )


def nothing_learned(histories: Sequence[History], chance: Chance) -> str:
    """What would help where no trial was shown to be better than the baseline.

    Args:
        histories: all trials, none of which learned.
        chance: the baseline.

    Returns:
        A clause without a full stop, true of these records.

    Example:
        >>> nothing_learned([], Chance(0.0, "constant prediction", (0.0, 0.0)))[:57]
        'one constant prediction is right about every held-out exa'
    """
    if one_answer(chance):
        return (
            "one constant prediction is right about every held-out example, so there is nothing to "
            "be better at: give valid examples of every class, or targets that differ"
        )
    faults = rate_independent(histories)
    if faults:
        return next(iter(faults.values()))
    seen = [history for history in histories if history.evaluation("valid") is not None]
    broken = {history.trial.lr for history in histories if _broke(history, chance)}
    calm = [history for history in seen if history.trial.lr not in broken]
    if not calm:
        if broken:
            return f"every rate broke, the smallest being {rate(min(broken))}: try smaller rates"
        return "no trial was evaluated: its failures say what to mend"
    fitted = [history for history in calm if training_fit(history, chance) is not None]
    if fitted:
        best = min(fitted, key=_held_out)
        return (
            f"rate {rate(best.trial.lr)} fits the training data, but its held-out loss is "
            f"{number(_held_out(best))}: fewer steps, weight decay or more training data would help"
        )
    return _flat(calm, broken, chance)


def _flat(calm: Sequence[History], broken: set[float], chance: Chance) -> str:
    """The same where some trials neither broke nor fit their training data."""
    best = min(calm, key=_held_out)
    if still_falls(best, chance):
        return (
            f"the training loss of rate {rate(best.trial.lr)} still fell when it ended: "
            "train longer"
        )
    evaluation = best.evaluation("valid")
    assert evaluation is not None
    gained = gain(evaluation, chance)
    if gained > AT_BASELINE * abs(chance.loss):
        return (
            f"the lowest held-out loss, {number(evaluation.loss)} at rate {rate(best.trial.lr)}, "
            f"is below the baseline, but {number(evaluation.examples)} held-out examples do not "
            "show it: give more of them"
        )
    largest = max(history.trial.lr for history in calm)
    if not any(lr > largest for lr in broken):
        return "no rate learns yet: try larger rates"
    if gained > -AT_BASELINE * abs(chance.loss):
        return (
            "every rate that does not break stays at the loss of a constant prediction, which "
            "neither more steps nor more examples would change: look whether outputs and targets "
            "have the same shape, and whether the targets can be told from the inputs"
        )
    return (
        f"rates from {rate(min(broken))} on break, and those below {rate(largest)} hardly learn: "
        "look at the scale of inputs and targets, clip the gradient, or try rates in between"
    )


def _broke(history: History, chance: Chance) -> bool:
    failure = history.failure
    if failure is not None and failure.cause == "non-finite":
        return True
    return rise(history, chance) is not None


def _held_out(history: History) -> float:
    evaluation = history.evaluation("valid")
    assert evaluation is not None
    return evaluation.loss
