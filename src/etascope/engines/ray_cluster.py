"""The Ray cluster of a study: one that runs already, or one of this machine for its length."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import Any

from etascope.engines.ray_guardian import ENVIRONMENT, Guardian
from etascope.errors import UsageError

INSTALL = "pip install 'etascope[ray]'"
LONGEST = 40  # characters of a temporary directory that leave room for Ray's socket names


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[str]:
    """A connection to a cluster; yields where it is, in words.

    A connection that this process has already is used and left as it is. Otherwise this connects
    to the cluster at `address`, or starts one of so many CPUs on this machine: it listens on
    loopback only, sends no usage statistics, keeps its files in a temporary directory, and is gone
    with all of them at the end, also where this process is killed (`Guardian`).

    Raises:
        UsageError: if Ray is not installed, or no cluster answers at `address`.
    """
    ray = _import_ray()
    if ray.is_initialized():
        ours = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", ours):
            raise UsageError(
                f"this process is connected to the Ray cluster at {ours} and the address is "
                f"{address!r}; leave it out, or call ray.shutdown() first"
            )
        yield "the Ray cluster that this process is connected to"
        return
    if address is not None and "://" in address:
        raise UsageError(
            f"{address!r} goes through Ray's client; run on a machine of the cluster and give "
            "host:port, or auto"
        )
    if address is not None:
        _knock(address)
    ours = address is None
    with ExitStack() as held:
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        settings, where = {}, f"the Ray cluster at {address}"
        held.enter_context(_handlers())
        try:
            if ours:
                address = _begin_cluster(held, cpus)
                where = "a Ray cluster of this machine, for this study only"
                settings = {**ENVIRONMENT, "RAY_AUTH_TOKEN": _token(), "RAY_AUTH_MODE": "token"}
                options["_node_ip_address"] = "127.0.0.1"
            held.callback(ray.shutdown)
            with _quietly(settings), _loopback(ours):
                _read_token()
                ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            told = " ".join(str(error).split())[:200]
            raise UsageError(
                f"Ray does not start on this machine ({told}); use engine processes"
                if ours
                else f"no Ray cluster answers at {address!r} ({told})"
            ) from error
        yield where


def _begin_cluster(held: ExitStack, cpus: int) -> str:
    """The address of a cluster of our own, which ends with `held` or with this process."""
    room = len(tempfile.gettempdir()) <= LONGEST
    directory = tempfile.mkdtemp(prefix="etascope-", dir=None if room else "/tmp")
    held.callback(shutil.rmtree, directory, ignore_errors=True)
    held.callback(_read_token)
    guardian = Guardian(directory, cpus, _token())
    held.callback(guardian.end)
    return guardian.address


def _knock(address: str) -> None:
    """Raise UsageError where nobody listens: Ray itself takes minutes to say so."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():  # auto, which Ray looks up
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"no Ray cluster answers at {address!r} ({error}); give the host:port that "
            "ray start has printed, or auto on a machine of the cluster"
        ) from error


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UsageError(f"engine ray needs Ray ({error}): {INSTALL}") from error
    return ray


@contextmanager
def _handlers() -> Iterator[None]:
    """Ray makes SIGTERM an orderly exit and has a hook for exceptions; as before on leaving."""
    main = threading.current_thread() is threading.main_thread()
    hook, before = sys.excepthook, signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        sys.excepthook = hook
        if main:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _quietly(settings: dict[str, str]) -> Iterator[None]:
    """Ray reads and writes os.environ, and logs; all of it as before on leaving."""
    before, logger = dict(os.environ), logging.getLogger("ray")
    level = logger.level
    os.environ.update(settings)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _loopback(only: bool) -> Iterator[None]:
    """Ray takes an address of 127.0.0.1 for the machine's own, unless it is told not to cluster."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not only
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@cache
def _token() -> str:
    """What shows the cluster that a process is ours; Ray would keep one in the home directory."""
    return secrets.token_hex(32)


def _read_token() -> None:
    """Have Ray look again how it is told to authenticate; it remembers the first answer."""
    import ray

    with suppress(AttributeError):
        ray._raylet.Config.initialize("")
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
