"""What stands on a node of a Ray cluster: one trial at a time, one rung a call.

The memory of the problem's tensors is the node's copy in the object store, which its actors share;
what one of them writes to it, no other sees (`etascope.engines.ray_memory`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

import etascope
from etascope.engines.base import Done, Work, train
from etascope.engines.handover import unpickle_problem
from etascope.engines.ray_memory import own_pages, split
from etascope.engines.witness import Witness
from etascope.errors import EtascopeError
from etascope.records import Burst, TrialId

VERSIONS = {"etascope": etascope.__version__, "torch": torch.__version__, "numpy": np.__version__}


class Message(NamedTuple):
    """A burst and the bytes of the state after it; a state may also come without a burst."""

    burst: Burst | None
    state: np.ndarray | None


class Seen(NamedTuple):
    """The last step that an actor has done."""

    trial: TrialId
    step: int
    loss: float
    metric: float | None


class Actor:
    """Trains trials of one problem.

    Args:
        parts: what `join` made of the parts of the problem.
        places: where each of them is in it.
        witness: what the problem is where it comes from.
        versions: of the packages that decide what a trial gives.
    """

    def __init__(
        self,
        parts: np.ndarray,
        places: Sequence[tuple[int, int]],
        witness: Witness,
        versions: dict[str, str],
    ) -> None:
        self._parts = parts  # keeps them in the object store
        self._running: Iterator[Done] = iter(())
        self._stop = threading.Event()
        self._seen: Seen | None = None
        self._refusal: EtascopeError | None = None
        try:
            check_versions(versions)
            memory = own_pages(parts)
            self._problem, self._plan = unpickle_problem(split(memory, places), witness)
        except EtascopeError as error:  # Ray would hand on nothing but its text
            self._refusal = error

    def pid(self) -> int:
        """The process that this actor is; the answer says that it is ready.

        Raises:
            EtascopeError: if it cannot train this problem as the process that made it would.
        """
        if self._refusal is not None:
            raise self._refusal
        return os.getpid()

    def proceed(
        self, start: tuple[TrialId, int, int] | None = None, message: Message | None = None
    ) -> Message | None:
        """Train to the next rung; None at the end of the work.

        Args:
            start: trial, target and step of new work; None to go on with the work begun.
            message: has the state to start from, where there is one.
        """
        if start is not None:
            state = None if message is None or message.state is None else message.state.data
            work, self._seen = Work(*start, state), None
            self._running = train(self._problem, self._plan, work, self._tick, self._stop.is_set)
        done = next(self._running, None)
        return None if done is None else Message(done.burst, as_array(done.state))

    def seen(self) -> Seen | None:
        """The last step of the work in progress; None before the first one."""
        return self._seen

    def stop(self) -> None:
        """End after the step in progress; this actor takes no more work."""
        self._stop.set()

    def _tick(self, trial: TrialId, step: int, loss: float, metric: float | None) -> None:
        if metric is None and self._seen is not None:
            metric = self._seen.metric
        self._seen = Seen(trial, step, loss, metric)


def check_versions(versions: dict[str, str]) -> None:
    """Raise EtascopeError if a package that decides what a trial gives is another one here."""
    for name, version in VERSIONS.items():
        if version != versions[name]:
            raise EtascopeError(
                f"a worker has {name} {version} and this process {versions[name]}; "
                "install the same version on every machine of the cluster"
            )


def as_array(data: bytes | memoryview | None) -> np.ndarray | None:
    """Bytes as the object store takes them without a copy."""
    return None if data is None else np.frombuffer(data, np.uint8)
