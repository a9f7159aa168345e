"""A worker process: takes work from a connection, gives back bursts and states.

It is started as a module of its own, so that a user's script is never run again, and it ends as
soon as the process that started it is gone.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etascope.plan import Plan
    from etascope.problems.problem import Problem
    from etascope.records import TrialId

WATCH_SECONDS = 1.0  # how often it is looked whether the parent is another one
TICK_SECONDS = 0.2  # between two ticks; each wakes the coordinator, which takes a core


class _Ticker:
    """Tells of the steps done, but not of each one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._metric: float | None = None
        self._next = 0.0

    def __call__(self, trial: TrialId, step: int, loss: float, metric: float | None) -> None:
        self._metric = self._metric if metric is None else metric
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + TICK_SECONDS
        self._connection.send(("tick", trial, step, loss, self._metric))
        self._metric = None


def main() -> None:
    """Serve the connection whose descriptor is named on the command line until it is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal
    connection = Connection(int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)
    with suppress(EOFError):
        from etascope.engines.handover import receive_problem
        from etascope.errors import EtascopeError, text_of

        try:
            problem, plan = receive_problem(connection)
        except EOFError:
            raise
        except EtascopeError as error:
            connection.send(("error", error))
            return
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
            connection.send(("broken", text_of(error)))
            return
        connection.send(("ready",))
        _serve(connection, problem, plan)


def _serve(connection: Connection, problem: Problem, plan: Plan) -> None:
    from etascope.engines.base import Work, bursts_of
    from etascope.engines.handover import receive_state, send_state
    from etascope.errors import EtascopeError
    from etascope.state import serialize

    while True:
        message = connection.recv()
        if message == "stop":  # it came after the end of the work that it was meant for
            continue
        trial, target, step, length = message
        work = Work(trial, target, step, receive_state(connection, length) if length else None)
        try:
            # While this works the other side sends nothing but "stop".
            for burst, state in bursts_of(
                problem, plan, work, _Ticker(connection), connection.poll
            ):
                if state is None:
                    connection.send(("done", burst, 0))
                    continue
                parts = serialize(state)
                connection.send(("done", burst, sum(part.nbytes for part in parts)))
                send_state(connection, parts)
        except EtascopeError as error:
            connection.send(("error", error))
        connection.send(("idle",))


def _end_with_parent() -> None:
    """End when the process that started this one is gone.

    Standard input is a pipe that ends then, unless a fork of that process holds it open too.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], WATCH_SECONDS)
        if readable and not os.read(0, 1):
            break
    os._exit(1)
