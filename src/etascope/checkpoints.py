"""The states of trials on the disk: one safetensors file for each trial that may go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from etascope.errors import StudyError
from etascope.journal import write_atomically, writing
from etascope.records import TrialId
from etascope.state import Packed

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one study directory."""

    def __init__(self, directory: Path) -> None:
        self._study = directory
        self._folder = directory / FOLDER

    def save(self, trial: TrialId, step: int, state: Packed) -> None:
        """Write the state of a trial; raises StudyError where the disk refuses."""
        with writing(self._study, f"save {trial}"):
            self._folder.mkdir(exist_ok=True)
            write_atomically(self._file(trial, step), state)

    def load(self, trial: TrialId, step: int) -> Packed:
        """The state of a trial at `step`; raises StudyError where it is missing or damaged."""
        path = self._file(trial, step)
        try:
            with safe_open(path, "numpy"):  # reads the header and the size only
                return path.read_bytes()
        except (OSError, SafetensorError) as error:
            raise StudyError(
                f"the checkpoint of {trial} at step {step} in {self._folder} cannot be read "
                f"({error}); name another --out to train it again"
            ) from error

    def keep_only(self, steps: Mapping[TrialId, int]) -> None:
        """Delete every checkpoint but those of the trials and steps named."""
        if not self._folder.is_dir():
            return
        kept = {self._file(trial, step) for trial, step in steps.items()}
        with writing(self._study, "delete old checkpoints"):
            for path in self._folder.iterdir():
                if path not in kept:
                    path.unlink(missing_ok=True)

    def drop(self, trial: TrialId, step: int) -> None:
        """Delete one checkpoint, if it is there."""
        with writing(self._study, "delete old checkpoints"):
            self._file(trial, step).unlink(missing_ok=True)

    def _file(self, trial: TrialId, step: int) -> Path:
        return self._folder / f"lr{trial.lr!r}-seed{trial.seed}-{step}.safetensors"
