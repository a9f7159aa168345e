"""The reading side of a study: what was trained, what came of it, and what it means.

Everything here is a function of the study directory; reading never trains, writes or imports
anything that the directory names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etascope.call import Call
from etascope.diagnosis.verdict import judge
from etascope.encoding import Environment, Mark, to_json
from etascope.environment import differences
from etascope.errors import UsageError
from etascope.journal import read_header
from etascope.reading import read_records
from etascope.records import History, Judgement, TrialId, Verdict
from etascope.search.finding import Finding, replay

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1  # of `Study.to_dict`; docs/json.md describes it


class Study:
    """A study as it stands on the disk; open one with `open_study`.

    Attributes:
        path: its directory.
        problem: what is known of the problem (`records.ProblemFacts`).
        reference: how the problem was named, or None where it was given in Python.
        plan: the plan, as JSON values.
        environment: versions, hardware and thread counts at its start.
        environments: that one, and each other in which it went on, in order.
        trials: the history of each trial, sorted by rate and seed.
        calls: what it was asked for by, in order; empty for a study of version 0.1.
        rules: those of the race that it was trained for by `find`, else None.
        damage: a sentence for each thing that could not be read; empty unless it was salvaged.
        source: the problem and plan it was trained from, where it comes from `sweep` itself.
    """

    def __init__(self, path: Path, *, salvage: bool = False) -> None:
        self.path = path
        self.source: tuple[Any, Any] | None = None
        header, self.name = read_header(path)
        self.problem, self.reference = header.problem, header.reference
        self.plan: dict[str, Any] = dict(header.plan)
        self.environment: dict[str, Any] = dict(header.environment)
        found = read_records(path, self.name, salvage=salvage)
        self.trials: tuple[History, ...] = found.trials
        self.rules, self._found, self.damage = found.rules, found.finding, found.damage
        self.environments: tuple[Environment, ...] = (self.environment, *found.environments)
        self.calls: tuple[Call, ...] = (*filter(None, [header.call]), *found.calls)
        self._marks = found.marks

    def __repr__(self) -> str:
        return f"Study({str(self.path)!r}: {len(self.trials)} trials, best {self.best})"

    @property
    def horizon(self) -> int:
        """The step count of a full training."""
        return int(self.plan["steps"])

    @property
    def lrs(self) -> tuple[float, ...]:
        """The learning rates, ascending."""
        return tuple(sorted({h.trial.lr for h in self.trials}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(sorted({h.trial.seed for h in self.trials}))

    @property
    def complete(self) -> bool:
        """Whether every trial failed or reached the step it was asked to reach.

        That step may lie before the horizon.
        """
        return all(h.status in ("finished", "failed") for h in self.trials)

    @cached_property
    def judgement(self) -> Judgement:
        """The verdicts at the default tolerance; `diagnosis.verdict.judge` takes others.

        A race trains fresh seeds at few rates and not as far: its rates are judged by the first
        seed, which all of them have.
        """
        seed, found = None if self.rules is None else self.rules.seed, self.finding
        confirmed = found.lr if found is not None and found.status == "resolved" else None
        facts = self.problem.chance
        return judge(self.trials, facts, self.horizon, seed=seed, confirmed=confirmed)

    @property
    def concluded(self) -> bool:
        """Whether a race came to its end and its answer is among the records."""
        return self._found is not None

    @cached_property
    def finding(self) -> Finding | None:
        """The answer of `find`, as far as it was trained; None for the study of a sweep.

        Where the race came to its end it is the answer that was given then, so that another version
        of the race does not change it; before, it is worked out from the records.
        """
        if self.rules is None:
            return None
        if self._found is not None:
            return replace(self._found, study=str(self.path))
        return replay(self.rules, self.trials, self.problem.chance, str(self.path))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of its files before its numbers, a sentence each."""
        said = [f"{damage}." for damage in self.damage]
        for before, after in pairwise(self.environments):
            said.append(
                f"It was trained under several versions or machines: {differences(before, after)}."
            )
        return tuple(said)

    def mark(self, trial: TrialId, step: int) -> Mark | None:
        """What the journal knows the checkpoint of a trial by; None in the older format."""
        return self._marks.get(trial, {}).get(step)

    @property
    def best(self) -> float | None:
        """The rate with the lowest mean held-out loss where training got furthest.

        That is the last step at which a rate that learned was evaluated with all its seeds: the
        horizon, or before it the furthest so far, and then its verdict is provisional. Rates that
        were paused earlier are not asked. None if no rate learned.
        """
        return self.judgement.best

    @property
    def band(self) -> tuple[float, float] | None:
        """The lowest and highest rate of the unbroken run around the best that are as good.

        None if no rate learned. A rate that was paused before the best is never part of it.
        """
        return self.judgement.band

    @property
    def verdicts(self) -> Mapping[float, Verdict]:
        """What became of each rate."""
        return self.judgement.rates

    def to_dict(self) -> dict[str, Any]:
        """The study as strict JSON values: what `etascope show --json` prints (docs/json.md)."""
        document = {
            "version": SCHEMA,
            "study": {
                "horizon": self.horizon,
                "lrs": self.lrs,
                "seeds": self.seeds,
                "complete": self.complete,
                "damage": self.damage,
                "seconds": sum(h.seconds for h in self.trials),
            },
            "problem": {"reference": self.reference, **asdict(self.problem)},
            "plan": self.plan,
            "environment": {**self.environment, "later": self.environments[1:]},
            "best": None if self.best is None else {"lr": self.best, "band": self.band},
            "finding": None if self.finding is None else self.finding.to_dict(),
            "rates": [{"lr": lr, "verdict": _verdict(v)} for lr, v in self.verdicts.items()],
            "trials": [self._trial(history) for history in self.trials],
        }
        plain: dict[str, Any] = to_json(document)
        return plain

    def to_frame(self) -> pd.DataFrame:
        """One row a trial: rate, seed, steps, verdict, final and peak values, seconds.

        Raises:
            UsageError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise UsageError(
                "to_frame needs pandas; install it with: pip install 'etascope[frame]'"
            ) from None
        rows = []
        for history in self.trials:
            valid, test = history.evaluation("valid"), history.evaluation("test")
            rows.append(
                {
                    "lr": history.trial.lr,
                    "seed": history.trial.seed,
                    "steps": history.step,
                    "status": history.status,
                    "verdict": self.judgement.trials[history.trial].name,
                    "valid_loss": valid.loss if valid else None,
                    "valid_metric": valid.metric if valid else None,
                    "test_metric": test.metric if test else None,
                    "peak_loss": history.peak[1] if history.peak else None,
                    "seconds": history.seconds,
                }
            )
        return pd.DataFrame(rows)

    def _trial(self, history: History) -> dict[str, Any]:
        valid, test = history.evaluation("valid"), history.evaluation("test")
        return {
            "lr": history.trial.lr,
            "seed": history.trial.seed,
            "target": history.target,
            "steps": history.step,
            "status": history.status,
            "seconds": history.seconds,
            "skipped": history.skipped,
            "verdict": _verdict(self.judgement.trials[history.trial]),
            "failure": None if history.failure is None else asdict(history.failure),
            "final": {
                "valid": None if valid is None else asdict(valid),
                "test": None if test is None else asdict(test),
            },
            "peak": history.peak and {"step": history.peak[0], "loss": history.peak[1]},
            "series": {
                "loss": history.loss.tolist(),
                "probe_steps": history.probe_steps.tolist(),
                "probe_metric": history.probe_metric.tolist(),
                "evaluations": [asdict(e) for e in history.evaluations],
            },
        }


def open_study(path: Study | str | os.PathLike[str], *, salvage: bool = False) -> Study:
    """Open a study for reading, finished or not.

    Args:
        path: the study directory; a Study is handed back as it is.
        salvage: where lines of the journal are damaged, read what is whole instead of raising:
            `Study.damage` says what is not, and so does everything that is drawn from it.

    Raises:
        UsageError: if it is no path.
        StudyError: if there is no study, or its files are damaged; it names file and line.
    """
    if isinstance(path, Study):
        return path
    if not isinstance(path, (str, os.PathLike)):
        raise UsageError(f"a study is named by its directory, not by a {type(path).__name__}")
    return Study(Path(path), salvage=salvage)


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict)
