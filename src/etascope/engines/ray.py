"""Trials side by side on the machines of a Ray cluster: one actor a CPU, one thread each.

Results come as they are ready, through one queue, so that the work a message costs here does not
grow with the number of actors. Tensors and states travel through the object store; only the last
state of a trial is kept there, and this process keeps a reference to it and not its memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Self

from etascope.engines.base import Done, Work
from etascope.engines.crew import ENVIRONMENT
from etascope.engines.handover import pickle_problem
from etascope.engines.jobs import ATTEMPTS, Job
from etascope.engines.processes import POLL_SECONDS
from etascope.engines.ray_actor import VERSIONS, Actor, Message, Seen, as_array
from etascope.engines.ray_cluster import connected
from etascope.engines.ray_memory import join
from etascope.engines.witness import witness_of
from etascope.environment import size, usable_cores
from etascope.errors import EtascopeError, UsageError
from etascope.plan import Plan
from etascope.problems.problem import Problem
from etascope.trial import Stopping, Tick

if TYPE_CHECKING:
    from ray import ObjectRef

AHEAD = 2  # rungs asked for at a time, so that an actor never waits for this process
TICKS = 4  # actors asked for their last step at each poll, however many there are
GONE_SECONDS = 10.0  # to wait until ended actors are gone
CONTROL = "control"  # the thread of an actor that answers while the other one trains


@dataclass
class _RayJob(Job):
    """A job whose last state is in the object store.

    `told` is the step up to which its bursts were given. It is ahead of `work.step` after a state
    was lost with its machine: the trial, being a pure function, then trains that stretch again.
    """

    origin: Work | None = None
    state: ObjectRef | None = None
    told: int = 0

    def restart(self) -> None:
        """Go back to the state that the work came with."""
        assert self.origin is not None
        self.work, self.state = self.origin, None


class _Worker:
    """An actor, seen from here."""

    def __init__(self, actor: Any, messages: SimpleQueue[_Answer]) -> None:
        self.actor, self._messages = actor, messages
        self.job: _RayJob | None = None
        self.calls: deque[ObjectRef] = deque()
        self.seen_step = 0
        self.told_to_stop = self.asked = False
        self.expect("ready", actor.pid.remote())

    def expect(self, kind: str, reference: ObjectRef) -> None:
        """Have the answer to a call put into the queue."""

        def put(future: Future[Any]) -> None:
            self._messages.put(_Answer(self, kind, reference, future))

        reference.future().add_done_callback(put)

    def begin(self, job: _RayJob) -> None:
        """Give it work; it must be idle."""
        import ray

        self.job, work = job, job.work
        self.seen_step = work.step
        if job.state is None and work.state is not None:
            job.state = ray.put(Message(None, as_array(work.state)))
        start = (work.trial, work.target, work.step)
        self.calls.append(self.actor.proceed.remote(start, job.state))
        self.expect("rung", self.calls[0])
        self.ask_ahead()

    def ask_ahead(self) -> None:
        """Ask for further rungs before the one in progress is there."""
        while len(self.calls) < AHEAD:
            self.calls.append(self.actor.proceed.remote())

    def ask_step(self) -> None:
        """Ask for the last step it has done."""
        self.asked = True
        self.expect("seen", self.actor.seen.options(concurrency_group=CONTROL).remote())

    def stop(self) -> None:
        """Have it end after the step in progress."""
        if not self.told_to_stop:
            self.told_to_stop = True
            self.actor.stop.options(concurrency_group=CONTROL).remote()


@dataclass
class _Answer:
    worker: _Worker
    kind: str
    reference: ObjectRef
    future: Future[Any]


class RayEngine:
    """Trains as many trials at a time as there are actors; see `etascope.engines.base.Engine`.

    Args:
        problem, plan: what to train and how; handed to every machine once.
        workers: how many actors; by default one a CPU of the cluster.
        address: of a running cluster; None starts one on this machine and ends it on leaving. A
            connection to a cluster that this process has already is used and left as it is.

    Raises:
        UsageError: if Ray is not installed, no cluster answers, the problem cannot leave this
            process, or it trains on something else than a CPU.
    """

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        workers: int | None = None,
        address: str | None = None,
    ) -> None:
        if problem.torch_device.type != "cpu":
            raise UsageError(
                f"engine ray trains on CPUs and the problem is on {problem.torch_device}; "
                "give the problem device='cpu', or use another engine"
            )
        parts = pickle_problem(problem, plan, elsewhere=True)
        with ExitStack() as held:
            where = held.enter_context(connected(address, workers or usable_cores()))
            import ray

            self.at_once = workers or max(1, int(ray.cluster_resources().get("CPU", 0)))
            whole, self._places, written = join(parts)
            self._parts = ray.put(whole)
            # Last, since drawing a batch may move what has been pickled, such as a generator.
            self._witness = witness_of(problem)
            # An actor that is made anew would have lost its trial; this process makes new ones.
            self._actor = ray.remote(
                num_cpus=1,
                max_restarts=0,
                concurrency_groups={CONTROL: 1},
                runtime_env={"env_vars": ENVIRONMENT},
            )(Actor)
            self._held = held.pop_all()
        self._stillborn = 0
        self._clear()
        shared, copied = size(written - parts[0].nbytes), size(parts[0].nbytes)
        actors = "1 actor" if self.at_once == 1 else f"{self.at_once} actors"
        self.about = (
            f"ray: {actors} of one CPU each on {where}; {shared} of tensors and arrays shared on "
            f"each machine, {copied} copied to each actor"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_workers()
        del self._parts, self._actor
        self._held.close()

    def run(
        self, work: Iterable[Work], *, tick: Tick | None = None, stopping: Stopping | None = None
    ) -> Iterator[Done]:
        """Train each piece of work to its target, as many at a time as there are actors.

        Actors that are idle at the end wait for the next call; a stop or a cancel ends them all.
        """
        waiting = iter(work)
        try:
            while True:
                stop = stopping is not None and stopping()
                if stop:
                    for worker in self._busy:
                        worker.stop()
                else:
                    self._give_work(waiting)
                if not self._busy and (stop or not self._jobs):
                    break
                if tick is not None:
                    self._ask_steps()
                with suppress(Empty):
                    done = self._take(self._messages.get(timeout=POLL_SECONDS), tick)
                    if done is not None:
                        yield done
        except BaseException:
            self._end_workers()
            raise
        if stop:
            self._end_workers()

    # Actors ---------------------------------------------------------------------------------

    def _clear(self) -> None:
        self._messages: SimpleQueue[_Answer] = SimpleQueue()
        self._jobs: deque[_RayJob] = deque()  # retries, then new ones
        self._starting: dict[_Worker, None] = {}
        self._idle: dict[_Worker, None] = {}
        self._busy: dict[_Worker, None] = {}  # the next one to be asked for a tick comes first
        self._next_ticks = 0.0

    def _end_workers(self) -> None:
        """End every actor, whatever it does, and wait until it is gone."""
        import ray

        workers = [*self._starting, *self._idle, *self._busy]
        self._clear()
        if not workers or not ray.is_initialized():
            return
        for worker in workers:
            ray.kill(worker.actor)
        ended = [worker.actor.pid.remote() for worker in workers]
        ray.wait(ended, num_returns=len(ended), timeout=GONE_SECONDS, fetch_local=False)

    def _give_work(self, waiting: Iterator[Work]) -> None:
        """Fill the idle actors, and start new ones while there is more to do.

        Only an actor that has started is given work: where a cluster has become too small for
        all, those that wait for a CPU must not hold a trial.
        """
        room = self.at_once - len(self._busy) - len(self._jobs)
        for piece in islice(waiting, max(0, room)):
            self._jobs.append(_RayJob(piece, origin=piece, told=piece.step))
        while self._jobs and self._idle:
            worker, _ = self._idle.popitem()
            self._busy[worker] = None
            worker.begin(self._jobs.popleft())
        while len(self._starting) < min(len(self._jobs), self.at_once - len(self._busy)):
            actor = self._actor.remote(self._parts, self._places, self._witness, VERSIONS)
            self._starting[_Worker(actor, self._messages)] = None

    def _bury(self, worker: _Worker, error: Exception) -> Done | None:
        """An actor died: its trial is tried again, or has failed."""
        import ray

        if worker in self._starting:
            if getattr(error, "actor_init_failed", False):
                raise EtascopeError(f"a Ray actor could not rebuild the problem: {_told(error)}")
            self._stillborn += 1
            if self._stillborn >= ATTEMPTS:
                raise EtascopeError(f"Ray actors do not start ({_told(error)})")
        for workers in (self._starting, self._idle, self._busy):
            workers.pop(worker, None)
        with suppress(ray.exceptions.RayError):
            ray.kill(worker.actor)  # it may only be out of reach
        job = worker.job
        if job is None or job.finished:
            return None
        failed = job.died(_told(error))
        if failed is None:
            self._jobs.appendleft(job)
        return failed

    # Answers --------------------------------------------------------------------------------

    def _take(self, answer: _Answer, tick: Tick | None) -> Done | None:
        import ray

        worker = answer.worker
        if not (worker in self._busy or worker in self._starting):
            return None
        try:
            content = answer.future.result()
        except ray.exceptions.RayTaskError as error:
            return self._refused(worker, error)
        except ray.exceptions.RayError as error:
            return self._bury(worker, error)
        if answer.kind == "ready":
            del self._starting[worker]
            self._idle[worker], self._stillborn = None, 0
        elif answer.kind == "seen":
            worker.asked = False
            self._tell(worker, content, tick)
        else:
            return self._rung(worker, answer.reference, content, tick)
        return None

    def _rung(
        self, worker: _Worker, reference: ObjectRef, message: Message | None, tick: Tick | None
    ) -> Done | None:
        worker.calls.popleft()
        if message is None:  # the end of the work
            if worker.calls:
                worker.expect("rung", worker.calls[0])
            else:
                worker.job = None
                del self._busy[worker]
                self._idle[worker] = None
            return None
        burst, job = message.burst, worker.job
        assert burst is not None
        assert job is not None
        job.reached(burst, None)
        job.state = None if message.state is None else reference
        if not job.finished:
            worker.ask_ahead()
        worker.expect("rung", worker.calls[0])
        if burst.loss:
            metric = burst.probe_metric[-1] if burst.probe_metric else None
            self._tell(worker, Seen(burst.trial, burst.stop, burst.loss[-1], metric), tick)
        if burst.stop <= job.told and burst.failure is None:
            return None  # trained again, and given before
        job.told = burst.stop
        return Done(burst, None if message.state is None else message.state.data)

    def _refused(self, worker: _Worker, error: Any) -> Done | None:
        """An actor raised: the state it was to start from is lost, or training cannot go on."""
        import ray

        if not isinstance(error.cause, ray.exceptions.ObjectLostError) or worker.job is None:
            if isinstance(error.cause, EtascopeError):
                raise error.cause
            raise EtascopeError(f"a Ray actor failed: {_told(error)}") from error
        worker.job.restart()
        return self._bury(worker, error)

    def _ask_steps(self) -> None:
        """Ask some actors how far they are: as many a second, however many there are."""
        if time.monotonic() < self._next_ticks:
            return
        self._next_ticks = time.monotonic() + POLL_SECONDS
        for worker in list(islice(self._busy, TICKS)):
            self._busy[worker] = self._busy.pop(worker)  # to the end of the line
            if not worker.asked:
                worker.ask_step()

    def _tell(self, worker: _Worker, seen: Seen | None, tick: Tick | None) -> None:
        if tick is None or seen is None or worker.job is None:
            return
        if seen.trial == worker.job.work.trial and seen.step > worker.seen_step:
            worker.seen_step = seen.step
            tick(*seen)


def _told(error: BaseException) -> str:
    """What Ray says of a death, without its list of identifiers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "because" in line or "exit" in line.lower()]
    return (causes or lines[-1:] or [type(error).__name__])[0][:300]
