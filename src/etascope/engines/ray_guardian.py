"""The process that a cluster of our own belongs to, and that ends with whoever asked for it.

Ray's processes notice late, or not at all, that the process which started them was killed. So they
are children of this one, which does nothing but wait for the end of its standard input: a pipe
whose other end is held by the process that trains. Then it kills its descendants, which also are
those whose own parent is gone, by their ids, and removes the directory of the cluster.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

COMMAND = (
    "import sys; sys.path[:] = {path!r}; from etascope.engines.ray_guardian import main; main()"
)
PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
WATCH_SECONDS = 1.0  # how often it is looked whether the parent is another one
END_SECONDS = 8.0  # after which what cannot be killed is left
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1 then means itself
}


class Guardian:
    """A cluster of this machine that ends with this process, seen from here.

    Args:
        directory: for the files of the cluster; removed at its end.
        cpus: how many it is to have.
        token: lets processes into the cluster.

    Raises:
        RuntimeError: if Ray does not start.
    """

    def __init__(self, directory: str, cpus: int, token: str) -> None:
        path = [entry or os.getcwd() for entry in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND.format(path=path), directory, str(cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ENVIRONMENT, "RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token"},
            start_new_session=True,  # a Ctrl-C is for the process that trains
        )
        try:
            assert self._process.stdout is not None
            told = json.loads(self._process.stdout.readline() or '{"error": "it died"}')
            if "error" in told:
                raise RuntimeError(told["error"])
        except BaseException:
            self.end()
            raise
        self.address: str = told["address"]

    def end(self) -> None:
        """End the cluster and wait until it is gone."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(END_SECONDS + 2 * WATCH_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Start a cluster, tell its address in a line of JSON, and end it with the parent."""
    directory, cpus = sys.argv[1], int(sys.argv[2])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    watch = threading.Thread(target=_watch, args=(os.getppid(), directory), daemon=True)
    watch.start()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that Ray prints may stand before the answer
    told = _start(directory, cpus)
    with contextlib.suppress(OSError), answer:
        answer.write(json.dumps(told) + "\n")
    watch.join()


def _start(directory: str, cpus: int) -> dict[str, str]:
    try:
        import ray

        context: Any = ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=directory,
        )
        return {"address": str(context.address_info["gcs_address"])}
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent tells it
        return {"error": " ".join(str(error).split())[:200]}


def _watch(parent: int, directory: str) -> None:
    """Wait for the end of standard input, or of the parent: a fork of it may hold the pipe."""
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], WATCH_SECONDS)
        if readable and not os.read(0, 1):
            break
    if sys.platform == "linux":
        _kill_descendants()
    else:
        import ray

        ray.shutdown()
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(0)


def _kill_descendants() -> None:
    """Kill until none is left: one that is killed may just have started another."""
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end:
        alive = _descendants(os.getpid())
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _descendants(pid: int) -> list[int]:
    """The living processes below this one. Orphans are its children, since it adopts them."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            state, above = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(above), []).append(int(stat.parent.name))
    found = list(children.get(pid, ()))
    for child in found:
        found += children.get(child, ())
    return found
