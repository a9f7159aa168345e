"""Who writes to a study: one process, also where the file system knows no locks.

The kernel's lock on `study.lock` goes when its process goes, however that ends. Some network file
systems offer none; there `study.owner` is made, which must be new, and names the process. One that
a process of this machine left behind is taken away; whether a process of another machine is still
there cannot be known, so the message names it and the file.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from etascope.errors import StudyError
from etascope.files import open_regular

LOCK, OWNER = "study.lock", "study.owner"
PATIENCE_SECONDS = 3  # in which a file that a dead process left is found to be so
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # flock says so of a lock of another's


def take_lock(directory: Path) -> Callable[[], None]:
    """Become the one writer of a study; returns what gives the lock back.

    Raises:
        StudyError: if another process is writing.
        OSError: if a file of the lock cannot be made.
    """
    descriptor = open_regular(directory / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in HELD:
            return _take_ownership(directory)
        raise StudyError(
            f"another process is writing to the study in {directory}; "
            "wait for it, stop it, or choose another --out"
        ) from None
    return lambda: os.close(descriptor)


def _take_ownership(directory: Path) -> Callable[[], None]:
    from filelock import SoftFileLock, Timeout

    path = directory / OWNER
    if path.is_symlink():
        raise OSError(errno.ELOOP, f"{OWNER} is a symbolic link", str(path))
    owner = SoftFileLock(path, thread_local=False)
    try:
        owner.acquire(timeout=PATIENCE_SECONDS, poll_interval=0.05)
    except Timeout:
        who = _owner(path)
        raise StudyError(
            f"the file system of {directory} offers no locks, and {who} is writing to the study "
            f"there by what {OWNER} says; if it is gone, delete that file"
        ) from None
    return owner.release


def _owner(path: Path) -> str:
    """Who made the file: filelock writes process and host on its first two lines."""
    try:
        process, host = path.read_text(errors="replace")[:200].split()[:2]
    except (OSError, ValueError):
        return "another process"
    return f"process {process} of {host}"
