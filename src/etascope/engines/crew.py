"""Worker processes of this machine, seen from the process that started them."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing.connection import Pipe
from typing import Self

from etascope.engines.handover import Parcel, send_problem, send_state
from etascope.engines.jobs import Job
from etascope.environment import usable_cores

COMMAND = "import sys; sys.path[:] = {path!r}; from etascope.engines.worker import main; main()"
# glibc gives large blocks back to the kernel and faults them in again, which costs an optimizer
# that is not fused a sixth of a step; and one thread each is what makes a trial the same bit for
# bit everywhere.
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
TUNABLES = "glibc.malloc.hugetlb=1"  # large pages where the kernel offers them: 3 % of a step


class Worker:
    """A worker process, seen from here. It starts before there is a problem for it."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        self.job: Job | None = None
        self.ready = self.told_to_stop = self._has_problem = False
        path = [entry or os.getcwd() for entry in sys.path]
        tunables = [value for value in (os.environ.get("GLIBC_TUNABLES"), TUNABLES) if value]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND.format(path=path), str(theirs.fileno())],
                stdin=subprocess.PIPE,
                env={**os.environ, **ENVIRONMENT, "GLIBC_TUNABLES": ":".join(tunables)},
                pass_fds=(theirs.fileno(),),
            )
        finally:
            theirs.close()

    def begin(self, job: Job, parcel: Parcel) -> None:
        """Give it work on the problem in the parcel; it must be idle."""
        self.job, self.told_to_stop = job, False
        if not self._has_problem:
            self._has_problem = True
            send_problem(self.connection, parcel)
        work = job.work
        self.connection.send((work.trial, work.target, work.step, len(work.state or b"")))
        if work.state is not None:
            send_state(self.connection, [memoryview(work.state)])

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


class Crew:
    """Worker processes that wait for a problem; a context manager, which ends them.

    They take seconds to start, which pass while the problem is being checked.

    Args:
        size: how many; by default one a core that this process may use.
        early: whether to start them now, and not when the first work comes.
    """

    def __init__(self, size: int | None = None, *, early: bool = False) -> None:
        self.size = size or usable_cores()
        self.workers = [Worker() for _ in range(self.size)] if early else []

    @property
    def has_room(self) -> bool:
        """Whether a worker is idle or can still be started."""
        return len(self.workers) < self.size or any(w.job is None for w in self.workers)

    def idle(self) -> Worker:
        """A worker without work; a new one if all others have some."""
        for worker in self.workers:
            if worker.job is None:
                return worker
        self.workers.append(Worker())
        return self.workers[-1]

    def end(self) -> None:
        """End every worker, whatever it does."""
        for worker in self.workers:
            worker.end()
        self.workers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
