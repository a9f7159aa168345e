"""Trials side by side on the cores of this machine: one worker process a core, one thread each.

A worker takes one trial at a time; what its death means is in `etascope.engines.jobs`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from typing import Self

from etascope.engines.base import Done, Work
from etascope.engines.handover import Parcel, pack_problem, receive_state, send_state
from etascope.engines.jobs import ATTEMPTS, Job
from etascope.environment import size, usable_cores
from etascope.errors import EtascopeError
from etascope.plan import Plan
from etascope.problems.problem import Problem
from etascope.records import Burst
from etascope.trial import Stopping, Tick

POLL_SECONDS = 0.1  # how often the wish to stop is looked at

COMMAND = "import sys; sys.path[:] = {path!r}; from etascope.engines.worker import main; main()"
# glibc gives large blocks back to the kernel and faults them in again at every step, which costs
# a third of it; and one thread each is what makes a trial the same bit for bit everywhere.
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class _Worker:
    """A worker process, seen from here."""

    def __init__(self, parcel: Parcel) -> None:
        self.connection, theirs = Pipe()
        self.job: Job | None = None
        self.ready = self.told_to_stop = False
        arguments = json.dumps([theirs.fileno(), parcel.descriptor, parcel.places])
        path = [entry or os.getcwd() for entry in sys.path]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND.format(path=path), arguments],
                stdin=subprocess.PIPE,
                env={**os.environ, **ENVIRONMENT},
                pass_fds=(theirs.fileno(), parcel.descriptor),
            )
        finally:
            theirs.close()

    def begin(self, job: Job) -> None:
        """Give it work; it must be idle."""
        self.job, self.told_to_stop = job, False
        work = job.work
        self.connection.send((work.trial, work.target, work.step, len(work.state or b"")))
        if work.state is not None:
            send_state(self.connection, work.state)

    def stop(self) -> None:
        """Have it end after the step in progress."""
        if self.job is not None and not self.told_to_stop:
            self.told_to_stop = True
            self.connection.send("stop")

    def end(self) -> None:
        """End the process, whatever it does, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.connection.close()


class ProcessesEngine:
    """Trains as many trials at a time as there are workers; see `etascope.engines.base.Engine`.

    Args:
        problem, plan: what to train and how; handed to every worker.
        workers: how many processes; by default one a core that this process may use.

    Raises:
        UsageError: if the problem cannot leave this process.
    """

    def __init__(self, problem: Problem, plan: Plan, workers: int | None = None) -> None:
        self.at_once = workers or usable_cores()
        self._parcel = pack_problem(problem, plan)
        self._workers: list[_Worker] = []
        self._retries: deque[Job] = deque()
        self._stillborn = 0
        some = "1 worker process" if self.at_once == 1 else f"{self.at_once} worker processes"
        memory = f"{size(self._parcel.shared_bytes)} of tensors and arrays shared"
        copied = f"{size(self._parcel.copied_bytes)} copied to each"
        self.about = f"processes: {some} of one thread each; {memory}, {copied}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_workers()
        os.close(self._parcel.descriptor)

    def run(
        self, work: Iterable[Work], *, tick: Tick | None = None, stopping: Stopping | None = None
    ) -> Iterator[Done]:
        """Train each piece of work to its target, as many at a time as there are workers."""
        waiting = iter(work)
        try:
            while True:
                stop = stopping is not None and stopping()
                if not stop:
                    self._give_work(waiting)
                busy = {w.connection: w for w in self._workers if w.job is not None}
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
        finally:
            self._end_workers()

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._retries.clear()

    def _give_work(self, waiting: Iterator[Work]) -> None:
        """Fill the idle workers, and start new ones while there is more to do."""
        while True:
            worker = next((w for w in self._workers if w.job is None), None)
            if worker is None and len(self._workers) >= self.at_once:
                return
            if self._retries:
                job = self._retries.popleft()
            else:
                piece = next(waiting, None)
                if piece is None:
                    return
                job = Job(piece)
            if worker is None:
                worker = _Worker(self._parcel)
                self._workers.append(worker)
            try:
                worker.begin(job)
            except OSError:  # it died while it was idle
                worker.job = None
                self._retries.appendleft(job)
                self._bury(worker)

    def _listen(self, worker: _Worker, tick: Tick | None) -> Done | None:
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

    def _done(self, worker: _Worker, burst: Burst, length: int) -> Done:
        state = receive_state(worker.connection, length) if length else None
        assert worker.job is not None
        worker.job.reached(burst, state)
        return Done(burst, state)

    def _bury(self, worker: _Worker) -> Done | None:
        """A worker died: its trial is tried again, or has failed."""
        worker.end()
        self._workers.remove(worker)
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
