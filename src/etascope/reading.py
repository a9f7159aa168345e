"""The records of a study: the lines of its journal, decoded and joined, or where they are wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from etascope.call import Call
from etascope.encoding import (
    Environment,
    FindingLine,
    Mark,
    RequestLine,
    SessionLine,
    StepsFile,
    decode_burst,
    trial_id,
)
from etascope.errors import StudyError
from etascope.journal import JOURNAL, Line, StudyName, read_lines
from etascope.records import Burst, History, TrialId, merge
from etascope.schema import decoder
from etascope.search.board import Rules
from etascope.search.finding import Finding

SALVAGE = "etascope show --salvage shows what is whole"


class Records(NamedTuple):
    """All that a journal says.

    Attributes:
        trials: the history of each trial, sorted by rate and seed.
        rules, finding: of the last race, and its answer once it is there.
        environments: those in which the study went on after it was begun in another.
        marks: what the journal knows the checkpoints of each trial by, step by step.
        damage: a sentence for each thing that could not be read; empty unless it was salvaged.
        calls: those that went on with the study, in order.
    """

    trials: tuple[History, ...]
    rules: Rules | None
    finding: Finding | None
    environments: tuple[Environment, ...]
    marks: Mapping[TrialId, Mapping[int, Mark]]
    damage: tuple[str, ...]
    calls: tuple[Call, ...] = ()


def read_records(directory: Path, name: StudyName, *, salvage: bool = False) -> Records:
    """The records of a study.

    Args:
        directory, name: of the study.
        salvage: read what is whole, and say what is not, instead of raising.

    Raises:
        StudyError: for a line that is not as it was written; it names file and line.
    """
    found, path = _Found(salvage), directory / JOURNAL
    with StepsFile(directory) as steps:
        for line in read_lines(directory, name):
            try:
                if not line.damage:
                    found.take(line, steps)
                    continue
                why = line.damage
            except ValueError as error:
                why = str(error)
            found.note(path, line.number, why)
    trials = [found.joined(path, trial) for trial in sorted(found.asked)]
    marks = {trial: asked.marks() for trial, asked in found.asked.items()}
    answer, environments = found.answer, tuple(found.environments)
    damage, calls = tuple(found.damage), tuple(found.calls)
    return Records(tuple(trials), found.rules, answer, environments, marks, damage, calls)


_request = decoder(RequestLine)
_finding = decoder(FindingLine)
_session = decoder(SessionLine)


@dataclass
class _Asked:
    """A trial that was asked for: its target, and its bursts with their lines and checkpoints."""

    target: int
    taken: list[tuple[Burst, int, Mark | None]] = field(default_factory=list)

    def marks(self) -> dict[int, Mark]:
        return {burst.stop: mark for burst, _, mark in self.taken if mark is not None}


@dataclass
class _Found:
    """What the lines so far hold."""

    salvage: bool
    asked: dict[TrialId, _Asked] = field(default_factory=dict)
    environments: list[Environment] = field(default_factory=list)
    rules: Rules | None = None
    answer: Finding | None = None
    damage: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def take(self, line: Line, steps: StepsFile) -> None:
        """Take a record; raises ValueError where it is none."""
        kind = line.record.get("kind")
        if kind == "burst":
            self._take_burst(line, steps)
        elif kind == "request":
            request: RequestLine = _request(line.record)
            if request.call is not None:
                self.calls.append(request.call)
            for lr, seed, target in request.trials:
                asked = self.asked.setdefault(trial_id(lr, seed), _Asked(target))
                asked.target = max(target, asked.target)
        elif kind == "race":
            self.rules = Rules.from_record({k: v for k, v in line.record.items() if k != "kind"})
            self.answer = None
        elif kind == "finding":
            if self.rules is None:
                raise ValueError("it answers a race whose rules no line holds")
            self.answer = Finding.from_dict(_finding(line.record).finding, self.rules)
        elif kind == "session":
            self.environments.append(_session(line.record).environment)
        else:
            raise ValueError("its kind is none that this version knows")

    def _take_burst(self, line: Line, steps: StepsFile) -> None:
        burst, mark = decode_burst(line.record, steps)
        asked = self.asked.get(burst.trial)
        if asked is None:
            if not self.salvage:
                raise ValueError(f"it trains {burst.trial}, which no line asks for")
            asked = self.asked[burst.trial] = _Asked(burst.stop)
            self.damage.append(f"{JOURNAL}: how far {burst.trial} was to be trained is lost")
        asked.taken.append((burst, line.number, mark))
        self.answer = None  # an answer stands until more is trained

    def note(self, path: Path, number: int, why: str) -> None:
        """Note that a line cannot be read; raises StudyError unless the study is salvaged."""
        if not self.salvage:
            raise StudyError(f"{path}, line {number} is damaged: {why}; {SALVAGE}")
        self.damage.append(f"{path.name}, line {number} is damaged and left out: {why}")
        self.answer = None  # what it rested on is not there any more

    def joined(self, path: Path, trial: TrialId) -> History:
        """The bursts of a trial, up to the first that does not follow on."""
        asked = self.asked[trial]
        bursts = [burst for burst, _, _ in asked.taken]
        try:
            return merge(trial, asked.target, bursts)
        except ValueError as error:
            count = _whole(trial, asked.target, bursts)
            self.note(path, asked.taken[count][1], str(error))
            del asked.taken[count:]
            return merge(trial, asked.target, bursts[:count])


def _whole(trial: TrialId, target: int, bursts: Sequence[Burst]) -> int:
    """How many of the bursts follow on, by halving: beyond one that does not, none does."""
    low, high = 0, len(bursts)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            merge(trial, target, bursts[:middle])
            low = middle
        except ValueError:
            high = middle
    return low
