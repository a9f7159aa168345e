"""Trials side by side on the cores of this machine: one worker process a core, one thread each.

A worker takes one trial at a time; what its death means is in `etascope.engines.jobs`.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Self

from etascope.engines.base import Done, Work
from etascope.engines.crew import Crew, Worker
from etascope.engines.handover import pack_problem, receive_state
from etascope.engines.jobs import ATTEMPTS, Job
from etascope.environment import size
from etascope.errors import EtascopeError
from etascope.plan import Plan
from etascope.problems.problem import Problem
from etascope.records import Burst
from etascope.trial import Stopping, Tick

POLL_SECONDS = 0.1  # how often the wish to stop is looked at


class ProcessesEngine:
    """Trains as many trials at a time as there are workers; see `etascope.engines.base.Engine`.

    Args:
        problem, plan: what to train and how; handed to every worker.
        workers: how many processes; by default one a core that this process may use.

    Raises:
        UsageError: if the problem cannot leave this process.
    """

    def __init__(self, problem: Problem, plan: Plan, workers: int | Crew | None = None) -> None:
        self._crew = workers if isinstance(workers, Crew) else Crew(workers)
        self.at_once = self._crew.size
        self._parcel = pack_problem(problem, plan)
        self._retries: deque[Job] = deque()
        self._stillborn = 0
        some = "1 worker process" if self.at_once == 1 else f"{self.at_once} worker processes"
        memory = f"{size(self._parcel.shared_bytes)} of tensors and arrays shared"
        copied = f"{size(self._parcel.copied_bytes)} copied to each"
        self.about = f"processes: {some} of one thread each; {memory}, {copied}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._crew.end()
        os.close(self._parcel.descriptor)

    def run(
        self, work: Iterable[Work], *, tick: Tick | None = None, stopping: Stopping | None = None
    ) -> Iterator[Done]:
        """Train each piece of work to its target, as many at a time as there are workers.

        Workers that are idle at the end wait for the next call; a stop or a cancel ends them all.
        """
        jobs = (Job(piece) for piece in work)
        stop = True
        try:
            while True:
                stop = stopping is not None and stopping()
                if not stop:
                    self._give_work(jobs)
                busy = {w.connection: w for w in self._crew.workers if w.job is not None}
                if not busy:
                    return
                for worker in busy.values() if stop else ():
                    with suppress(OSError):  # it is gone, which the next look at it shows
                        worker.stop()
                for connection in wait(list(busy), POLL_SECONDS):
                    assert isinstance(connection, Connection)
                    done = self._listen(busy[connection], tick)
                    if done is not None:
                        yield done
        except BaseException:
            stop = True
            raise
        finally:
            if stop:
                self._crew.end()
            self._retries.clear()

    def _give_work(self, jobs: Iterator[Job]) -> None:
        """Fill the idle workers, and start new ones while there is more to do."""
        while self._crew.has_room:
            job = self._retries.popleft() if self._retries else next(jobs, None)
            if job is None:
                return
            worker = self._crew.idle()
            try:
                worker.begin(job, self._parcel)
            except OSError:  # it died while it was idle
                worker.job = None
                self._retries.appendleft(job)
                self._bury(worker)

    def _listen(self, worker: Worker, tick: Tick | None) -> Done | None:
        """Take one message of a worker, or notice that it is gone."""
        try:
            kind, *content = worker.connection.recv()
            if kind == "done":
                return self._done(worker, *content)
        except (EOFError, OSError):
            return self._bury(worker)
        if kind == "tick" and tick is not None:
            tick(*content)
        elif kind == "ready":
            worker.ready, self._stillborn = True, 0
        elif kind == "idle":
            worker.job = None
        elif kind == "broken":
            raise EtascopeError(f"a worker process could not rebuild the problem: {content[0]}")
        elif kind == "error":
            raise content[0]
        return None

    def _done(self, worker: Worker, burst: Burst, length: int) -> Done:
        state = receive_state(worker.connection, length) if length else None
        assert worker.job is not None
        worker.job.reached(burst, state)
        return Done(burst, state)

    def _bury(self, worker: Worker) -> Done | None:
        """A worker died: its trial is tried again, or has failed."""
        worker.end()
        self._crew.workers.remove(worker)
        status, job = worker.process.returncode, worker.job
        if not worker.ready:
            self._stillborn += 1
            if self._stillborn >= ATTEMPTS:
                raise EtascopeError(f"worker processes do not start ({_told(status)})")
        if job is None or job.finished:
            return None
        failed = job.died(_told(status)) if worker.ready else None
        if failed is None:
            self._retries.appendleft(job)
        return failed


def _told(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name
