"""Histories that were never trained, for verdicts to be made of."""

from dataclasses import replace

import numpy as np

from etascope.diagnosis.verdict import judge
from etascope.records import Chance, Evaluation, Failure, History, TrialId

CHANCE = Chance(2.3, "constant prediction", (2.3,) * 20, ((1000, 0.112),))
REGRESSION = Chance(1.0, "constant prediction", (1.0, 1.1, 0.9, 1.05, 0.95) * 4)


def evaluation(step, loss, accuracy=None, *, noise=0.01, seed=0):
    wobble = np.random.default_rng(seed).normal(0, noise, 20)
    correct = None if accuracy is None else round(1000 * accuracy)
    return Evaluation(
        step=step,
        split="valid",
        loss=loss,
        metric=accuracy,
        examples=1000,
        correct=correct,
        batch_losses=tuple(loss + wobble - wobble.mean()),
    )


def history(lr, loss, accuracy=None, *, seed=0, step=100, peak=None, start=12.0, target=100):
    curve = np.linspace(start, loss, step)
    if peak is not None:
        curve[step // 10 : step // 10 + 3] = peak
    return History(
        trial=TrialId(lr, seed),
        target=target,
        loss=curve,
        probe_steps=np.array([], dtype=np.int64),
        probe_metric=np.array([]),
        evaluations=(evaluation(step, loss, accuracy, seed=seed),),
        failure=None,
        seconds=1.0,
    )


def diverged(lr, seed=0):
    failure = Failure(7, "non-finite", "layer1.0", "the training loss became nan", "lower the rate")
    return replace(history(lr, 1.0, seed=seed), evaluations=(), failure=failure)


def names(histories, chance=CHANCE, horizon=100):
    return {lr: v.name for lr, v in judge(histories, chance, horizon).rates.items()}
