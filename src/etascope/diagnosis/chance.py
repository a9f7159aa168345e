"""One trial against chance: did it fail, has it not arrived yet, or does it learn?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from etascope.diagnosis.statistics import below, binomial_above, holm
from etascope.records import Chance, Evaluation, History, Number, TrialId, Verdict, VerdictName


def judge_alone(
    histories: Sequence[History], chance: Chance, horizon: int, alpha: float
) -> dict[TrialId, Verdict]:
    """Failed trials get their verdict, learners a preliminary `good`, unseen ones none."""
    verdicts: dict[TrialId, Verdict] = {}
    tested: list[tuple[History, Evaluation, float]] = []
    for history in histories:
        if history.failure is not None:
            verdicts[history.trial] = _of_failure(history)
            continue
        evaluation = history.evaluation("valid")
        if evaluation is not None:
            tested.append((history, evaluation, _p_chance(evaluation, chance)))
    learned = holm([p for _, _, p in tested], alpha)
    learners = (h.trial.lr for (h, _, _), yes in zip(tested, learned, strict=True) if yes)
    largest_learner = max(learners, default=None)
    for (history, evaluation, p), yes in zip(tested, learned, strict=True):
        evidence = _chance_evidence(history, evaluation, chance, p)
        if yes:
            verdict = Verdict("good", evaluation.step, True, "learns", evidence)
        else:
            verdict = _at_chance(history, evaluation, chance, largest_learner, evidence)
        verdicts[history.trial] = replace(verdict, provisional=evaluation.step < horizon)
    return verdicts


def _of_failure(history: History) -> Verdict:
    failure = history.failure
    assert failure is not None
    evidence: dict[str, Number] = {"failed_at": failure.step, "layer": failure.layer}
    if history.peak is not None:
        evidence |= {"peak_step": history.peak[0], "peak_loss": history.peak[1]}
    name: VerdictName = "diverged" if failure.cause == "non-finite" else "undecided"
    return Verdict(name, failure.step, False, failure.message, evidence)


def _p_chance(evaluation: Evaluation, chance: Chance) -> float:
    """The p-value of "knows no more than chance".

    For classes: accuracy against the share of the most common class, by the exact binomial test;
    else held-out loss against the chance loss, batch by batch.
    """
    share = _majority(evaluation, chance)
    if share is not None and evaluation.correct is not None:
        return binomial_above(evaluation.correct, evaluation.examples, share)
    ours = evaluation.batch_losses
    pairs = chance.batch_losses[: len(ours)]
    return below(ours, pairs if len(pairs) == len(ours) else chance.loss)


def _majority(evaluation: Evaluation, chance: Chance) -> float | None:
    return dict(chance.majority).get(evaluation.examples)


def _chance_evidence(
    history: History, evaluation: Evaluation, chance: Chance, p: float
) -> dict[str, Number]:
    evidence: dict[str, Number] = {
        "valid_loss": evaluation.loss,
        "chance_loss": chance.loss,
        "valid_examples": evaluation.examples,
        "p_chance": p,
    }
    share = _majority(evaluation, chance)
    if share is not None and evaluation.correct is not None:
        evidence |= {"valid_metric": evaluation.metric, "majority_share": share}
    if history.peak is not None:
        evidence |= {
            "initial_loss": float(history.loss[0]),
            "peak_step": history.peak[0],
            "peak_loss": history.peak[1],
        }
    return evidence


def _at_chance(
    history: History,
    evaluation: Evaluation,
    chance: Chance,
    largest_learner: float | None,
    evidence: dict[str, Number],
) -> Verdict:
    step = evaluation.step
    share = _majority(evaluation, chance)
    if share is not None and evaluation.correct is not None:
        at_chance = (
            f"held-out accuracy {evaluation.metric:.3f} is not significantly above "
            f"{share:.3f}, the share of the most common class"
        )
    elif len(evaluation.batch_losses) < 2:
        reason = "one held-out batch has no spread to judge by; give valid in several batches"
        return Verdict("undecided", step, False, reason, evidence)
    else:
        at_chance = (
            f"held-out loss {evaluation.loss:.4g} is not significantly below {chance.loss:.4g}, "
            f"the loss of knowing nothing ({chance.source})"
        )
    rose = _rose(history)
    if not rose and largest_learner is not None and largest_learner > history.trial.lr:
        reason = f"{at_chance}; its loss never rose and a larger rate learns: it has not arrived"
        return Verdict("too slow", step, False, reason, evidence)
    if not rose and largest_learner is None:
        reason = f"{at_chance}; its loss never rose and no rate learns yet: try larger rates"
        return Verdict("undecided", step, False, reason, evidence)
    if rose:
        peak_step, peak_loss = history.peak or (0, 0.0)
        at_chance += f"; its training loss had risen to {peak_loss:.4g} at step {peak_step}"
    return Verdict("stuck", step, False, at_chance, evidence)


def _rose(history: History) -> bool:
    """Whether the training loss rose by more than its initial size above its start."""
    if history.peak is None:
        return False
    start = float(history.loss[0])
    return history.peak[1] > start + abs(start)
