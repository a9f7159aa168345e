"""The states of trials on the disk: one safetensors file for each trial that may go on.

The journal knows each by its length and checksum, so that a file belongs to its study, trial and
step whatever its name says. Nothing else in the folder is ever read, written or deleted: only
regular files whose names this file makes.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

from etascope.encoding import Mark
from etascope.errors import StudyError
from etascope.files import read_regular, write_atomically
from etascope.journal import FOLDER, writing
from etascope.records import TrialId
from etascope.state import Packed, unpack

NAME = re.compile(
    r"lr(?P<lr>[0-9.e+-]+)-seed(?P<seed>[0-9]+)-(?P<step>[0-9]+)\.safetensors", re.ASCII
)
UNFINISHED = re.compile(r"\.(?P<name>.+\.safetensors)\.[0-9a-f]+", re.ASCII)


class Checkpoints:
    """The checkpoints of one study directory."""

    def __init__(self, directory: Path) -> None:
        self._study = directory
        self._folder = directory / FOLDER

    def save(self, trial: TrialId, step: int, state: Packed) -> Mark:
        """Write the state of a trial, and return what the journal is to know it by.

        Raises:
            StudyError: where the disk refuses, or the folder is a link.
        """
        with writing(self._study, f"save {trial}"):
            self._folder.mkdir(exist_ok=True)
            with self._opened():
                write_atomically(self._folder / file_name(trial, step), state)
        return Mark(len(state), crc32(state))

    def load(self, trial: TrialId, step: int, mark: Mark | None = None) -> Packed:
        """The state of a trial at `step`.

        Args:
            trial, step: whose and when.
            mark: what the journal knows it by; None for a study of the older format, where only
                the file itself can tell.

        Raises:
            StudyError: where it is missing, damaged, or another's.
        """
        name = file_name(trial, step)
        try:
            with self._opened() as folder:
                data = read_regular(name, most=mark.bytes if mark else None, folder=folder)
            if mark is None:
                found = unpack(data).step
                if found != step:
                    raise ValueError(f"it is of step {found}")
            elif mark != (len(data), crc32(data)):
                raise ValueError("it is not the one that was saved there")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise StudyError(
                f"the checkpoint of {trial} at step {step} in {self._folder} cannot be used: "
                f"{why}; name another --out to train it again"
            ) from error
        return data

    def keep_only(self, steps: Mapping[TrialId, int]) -> None:
        """Delete the checkpoints of this study but for those of the trials and steps named."""
        if not os.path.lexists(self._folder):
            return
        kept = {file_name(trial, step) for trial, step in steps.items()}
        with writing(self._study, "delete old checkpoints"), self._opened() as folder:
            for name in os.listdir(folder):
                if name not in kept and is_checkpoint(name):
                    _delete(name, folder)

    def drop(self, trial: TrialId, step: int) -> None:
        """Delete one checkpoint, if it is there."""
        if not os.path.lexists(self._folder):
            return
        with writing(self._study, "delete old checkpoints"), self._opened() as folder:
            _delete(file_name(trial, step), folder)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """A descriptor of the folder; raises OSError if it is a link, or no folder."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self._folder, flags)
        except OSError as error:
            if self._folder.is_symlink():
                raise OSError(error.errno, f"{FOLDER} is a symbolic link") from error
            raise
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def file_name(trial: TrialId, step: int) -> str:
    """The name of a checkpoint.

    >>> file_name(TrialId(0.1, 0), 20)
    'lr0.1-seed0-20.safetensors'
    """
    return f"lr{trial.lr!r}-seed{trial.seed}-{step}.safetensors"


def is_checkpoint(name: str) -> bool:
    """Whether `file_name` makes this name, or an interrupted `save` left it.

    >>> is_checkpoint("lr0.1-seed0-20.safetensors"), is_checkpoint("best.safetensors")
    (True, False)
    """
    unfinished = UNFINISHED.fullmatch(name)
    name = unfinished["name"] if unfinished else name
    parts = NAME.fullmatch(name)
    if parts is None:
        return False
    try:
        trial = TrialId(float(parts["lr"]), int(parts["seed"]))
        return file_name(trial, int(parts["step"])) == name
    except ValueError:
        return False


def _delete(name: str, folder: int) -> None:
    """Delete a regular file; what else has its name stays."""
    try:
        if stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
