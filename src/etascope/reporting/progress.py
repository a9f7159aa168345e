"""The display of a study in training: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from etascope.records import Burst, TrialId
from etascope.reporting.console import Terminal
from etascope.reporting.terminal import heading
from etascope.study import Study
from etascope.words import counted

ROWS = 16  # trials shown at once; a terminal has so many lines to spare


@dataclass
class _Row:
    """Where one trial is."""

    step: int
    target: int
    loss: float | None = None
    metric: float | None = None
    state: str = "waiting"


class TerminalProgress:
    """Shows every trial's step, rate, loss, metric and the time left; use as a context manager.

    Args:
        console: where to write. On a terminal the table is redrawn in place four times a second;
            elsewhere each finished burst is one line.
    """

    def __init__(self, console: Terminal | None = None) -> None:
        self._console = console or Terminal(stderr=True)
        self._rows: dict[TrialId, _Row] = {}
        self._live: Live | None = None
        self._metric = "metric"
        self._began = time.monotonic()
        self._steps_before = 0
        self._interrupted = False

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    # What the coordinator tells --------------------------------------------------------------

    def begin(self, study: Study, waiting: Mapping[TrialId, int], why: str | None = None) -> None:
        """Take up where the study stands; in a race, with the next round."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._metric = heading(study.problem.metric)
        steps = {h.trial: h.step for h in study.trials}
        self._rows = {t: _Row(steps.get(t, 0), target) for t, target in waiting.items()}
        self._steps_before = sum(row.step for row in self._rows.values())
        self._began = time.monotonic()
        resumed = f", {self._steps_before} steps already done" if self._steps_before else ""
        trials = f"{counted(len(self._rows), 'trial')} to train{resumed}"
        told = f"{why}: {trials}" if why else f"{trials}; study in {study.path}"
        self._console.say(told)
        if self._console.is_terminal and self._rows:
            self._live = Live(get_renderable=self._table, console=self._console, transient=True)
            self._live.start()

    def tick(self, trial: TrialId, step: int, loss: float, metric: float | None) -> None:
        """Note a step; drawing is left to the display's own clock."""
        row = self._rows[trial]
        row.step, row.loss, row.state = step, loss, "training"
        if metric is not None:
            row.metric = metric

    def burst(self, burst: Burst) -> None:
        """Note a burst, and write its line where there is no live table."""
        row = self._rows[burst.trial]
        row.step = burst.stop
        if burst.loss:
            row.loss = burst.loss[-1]
        if burst.failure is not None:
            row.state = "failed"
        elif row.step >= row.target:
            row.state = "done"
        if self._live is None:
            self._console.say(self._line(burst, row))

    def note(self, text: str) -> None:
        """Write a line to be known before training starts."""
        self._console.say(text)

    def stopping(self) -> None:
        """Say that the stop was heard."""
        self._interrupted = True
        if self._live is None:
            self._console.say("stopping after this step; Ctrl-C again stops at once")

    # Drawing ----------------------------------------------------------------------------------

    def _line(self, burst: Burst, row: _Row) -> str:
        parts = [f"{burst.trial}: step {row.step}/{row.target}"]
        if row.loss is not None:
            parts.append(f"loss {row.loss:.4g}")
        for evaluation in burst.evaluations:
            held_out = f"{evaluation.split} loss {evaluation.loss:.4g}"
            if evaluation.metric is not None:
                held_out += f", {self._metric} {evaluation.metric:.3f}"
            parts.append(held_out)
        if burst.failure is not None:
            parts.append(f"failed: {burst.failure.message}")
        return " | ".join([*parts, self._time_left()])

    def _table(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("rate", "seed"):
            table.add_column(name, justify="right")
        table.add_column("", width=24)
        for name in ("step", "loss", f"batch {self._metric}"):
            table.add_column(name, justify="right")
        table.add_column("")
        shown = [item for item in self._rows.items() if item[1].state == "training"]
        rest = [item for item in self._rows.items() if item[1].state != "training"]
        keep = {id(row) for _, row in (shown + rest)[:ROWS]}
        for trial, row in self._rows.items():
            if id(row) in keep:
                table.add_row(
                    f"{trial.lr:g}",
                    str(trial.seed),
                    ProgressBar(total=row.target, completed=row.step, width=24),
                    f"{row.step}/{row.target}",
                    "" if row.loss is None else f"{row.loss:.4g}",
                    "" if row.metric is None else f"{row.metric:.2f}",
                    Text(row.state, style="dim" if row.state == "waiting" else ""),
                )
        note = "stopping after this step; Ctrl-C again stops at once" if self._interrupted else ""
        more = f"… and {len(self._rows) - ROWS} more trials. " if len(self._rows) > ROWS else ""
        return Group(table, Text(f"{more}{self._time_left()} {note}".strip(), style="dim"))

    def _time_left(self) -> str:
        done = sum(row.step for row in self._rows.values()) - self._steps_before
        left = sum(r.target - r.step for r in self._rows.values() if r.state != "failed")
        if done <= 0:
            return "time left: not known yet"
        seconds = (time.monotonic() - self._began) / done * left
        return f"time left: {seconds // 60:.0f} min {seconds % 60:02.0f} s"
