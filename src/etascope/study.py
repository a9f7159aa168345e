"""The reading side of a study: what was trained, what came of it, and what it means.

Everything here is a function of the study directory; reading never trains, writes or imports
anything that the directory names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etascope.call import Call
from etascope.diagnosis.verdict import judge
from etascope.encoding import StepsFile, decode_burst, to_json, trial_id
from etascope.errors import StudyError, UsageError
from etascope.journal import read_header, read_records
from etascope.records import (
    Burst,
    Chance,
    History,
    Judgement,
    ProblemFacts,
    TrialId,
    Verdict,
    merge,
)
from etascope.search.board import Rules
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
        trials: the history of each trial, sorted by rate and seed.
        calls: what it was asked for by, in order; empty for a study of version 0.1.
        rules: those of the race that it was trained for by `find`, else None.
        source: the problem and plan it was trained from, where it comes from `sweep` itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source: tuple[Any, Any] | None = None
        header = read_header(path)
        try:
            self.problem = _facts(header["problem"])
            self.reference: str | None = header["reference"]
            self.plan: dict[str, Any] = header["plan"]
            self.environment: dict[str, Any] = header["environment"]
            begun = [Call.from_record(header["call"])] if "call" in header else []
            self.trials, self.rules, self._found, later = _read(path)
            self.calls: tuple[Call, ...] = (*begun, *later)
            int(self.plan["steps"])  # `horizon` rests on it
        except (KeyError, TypeError, ValueError) as error:
            raise StudyError(f"the records of the study in {path} are damaged ({error})") from error

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
            return replace(Finding.from_dict(self._found, self.rules), study=str(self.path))
        return replay(self.rules, self.trials, self.problem.chance, str(self.path))

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
                "seconds": sum(h.seconds for h in self.trials),
            },
            "problem": {"reference": self.reference, **asdict(self.problem)},
            "plan": self.plan,
            "environment": self.environment,
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


def open_study(path: Study | str | os.PathLike[str]) -> Study:
    """Open a study for reading, finished or not.

    Args:
        path: the study directory; a Study is handed back as it is.

    Raises:
        UsageError: if it is no path.
        StudyError: if there is no study, or its files are damaged.
    """
    if isinstance(path, Study):
        return path
    if not isinstance(path, (str, os.PathLike)):
        raise UsageError(f"a study is named by its directory, not by a {type(path).__name__}")
    return Study(Path(path))


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict)


def _facts(record: Mapping[str, Any]) -> ProblemFacts:
    return ProblemFacts(
        **{
            **record,
            "batch_shapes": tuple(map(tuple, record["batch_shapes"])),
            "chance": Chance.from_record(record["chance"]),
        }
    )


_Read = tuple[tuple[History, ...], Rules | None, dict[str, Any] | None, list[Call]]


def _read(path: Path) -> _Read:
    """The histories of the trials, the rules of the last race, its answer once it is there, and
    the calls that went on with the study.
    """
    calls: list[Call] = []
    rules: Rules | None = None
    found: dict[str, Any] | None = None
    targets: dict[TrialId, int] = {}
    bursts: dict[TrialId, list[Burst]] = {}
    steps = StepsFile(path)
    for record in read_records(path):
        if record["kind"] == "request":
            for lr, seed, target in record["trials"]:
                trial = trial_id(lr, seed)
                targets[trial] = max(int(target), targets.get(trial, 0))
            if "call" in record:
                calls.append(Call.from_record(record["call"]))
        elif record["kind"] == "burst":
            burst = decode_burst(record, steps)
            bursts.setdefault(burst.trial, []).append(burst)
            found = None  # an answer stands until more is trained
        elif record["kind"] == "race":
            rules, found = Rules.from_record(record), None
        elif record["kind"] == "finding":
            found = record["finding"]
    histories = tuple([merge(t, targets[t], bursts.pop(t, ())) for t in sorted(targets)])
    return histories, rules, found, calls
