"""The C++ frames of an optimizer's step, as a debugger shows them.

gdb runs a fresh process that trains two steps and takes a third. In it, at the first operator that
is split over threads, each of two threads is stopped as it enters the parallel body: the one that
called `step()`, and the first worker.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

from etascope.errors import EtascopeError, UsageError

# GOMP_parallel(body, ...) is how every parallel region of torch starts, whatever the operator. Each
# thread has a breakpoint of its own on the body and is shown where it stops there: by the time that
# one thread is stopped, another may have left the body already.
FIRST_ARGUMENT = {"x86_64": "$rdi", "aarch64": "$x0"}
MARK = "getpgid"  # the process calls it just before the step, and nothing else does
SCRIPT = """
set pagination off
set width 0
set print thread-events off
set print frame-arguments none
set breakpoint pending on
tbreak {mark}
run
tbreak GOMP_parallel
continue
tbreak *{argument} if $_thread == 1
tbreak *{argument} if $_thread != 1
continue
printf "@thread %d\\n", $_thread
bt
continue
printf "@thread %d\\n", $_thread
bt
kill
"""
FRAME = re.compile(
    r"^#\d+\s+(?:0x[0-9a-f]+ in )?(?P<name>.+?)(?: from (?P<file>\S+)| at (?P<line>\S+))?$"
)
PATIENCE = 300  # seconds; reading torch's symbols takes a few


class NativeFrame(NamedTuple):
    """A function of the stack, and the library or source line it is from."""

    name: str
    where: str


class NativeStack(NamedTuple):
    """Frames from the thread's start to the kernel."""

    thread: str
    """`caller`, which called `step()`, or `worker`."""
    frames: tuple[NativeFrame, ...]


def native_stacks(reference: str, optimizer: str = "adam", threads: int = 2) -> list[NativeStack]:
    """The stacks of the thread that calls `step()` and of a worker thread, inside the kernel.

    Args:
        reference: the problem, as a command line names it: another process has to find it.
        optimizer: a registered name.
        threads: how many the step may use; at least two, or nothing is split.

    Returns:
        One stack for the caller and one for a worker; empty if no operator is split over threads.

    Raises:
        UsageError: if gdb is not installed, or fewer than two threads are asked for.
        EtascopeError: if gdb cannot run the process.

    Source: the GDB manual, sourceware.org/gdb/current/onlinedocs/gdb.
    """
    gdb = shutil.which("gdb")
    if gdb is None:
        raise UsageError(
            "the native stack needs gdb, which is not installed; on Debian and Ubuntu: "
            "apt-get install gdb"
        )
    argument = FIRST_ARGUMENT.get(platform.machine())
    if argument is None:
        raise UsageError(f"the native stack is not read on {platform.machine()} processors")
    if threads < 2:
        raise UsageError(f"threads is {threads}; the native stack needs 2, or nothing is split")
    program = (
        "import sys; from etascope.inspection.callstack import marked_step; "
        "marked_step(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
    )
    lines = SCRIPT.format(mark=MARK, argument=argument).strip().splitlines()
    commands = [word for line in lines for word in ("-ex", line)]
    child = [sys.executable, "-c", program, reference, optimizer, str(threads)]
    try:
        done = subprocess.run(
            [gdb, "-nx", "-batch", "-iex", "set auto-load off", *commands, "--args", *child],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EtascopeError(
            f"gdb was not done after {PATIENCE} seconds; try fewer threads"
        ) from None
    if MARK not in done.stdout:
        words = " ".join((done.stderr or done.stdout).split())[-300:]
        raise EtascopeError(f"gdb could not run a step of {optimizer} on {reference}: {words}")
    return parse_stacks(done.stdout)


def parse_stacks(output: str) -> list[NativeStack]:
    """The stacks in what gdb printed, the caller's first, each from the thread's start inwards.

    >>> told = "#0  0x1 in kernel(int) () from /lib/a.so\\n#1  clone () at x.c:1\\n"
    >>> [frame.name for frame in parse_stacks("@thread 2\\n" + told)[0].frames]
    ['clone', 'kernel']
    """
    stacks = []
    for part in output.split("@thread ")[1:]:
        number, _, rest = part.partition("\n")
        matches = filter(None, map(FRAME.match, rest.splitlines()))
        frames = [
            NativeFrame(readable(m["name"]), (m["file"] or m["line"] or "").rpartition("/")[2])
            for m in matches
        ]
        if frames:  # there are none where the process ended without having split anything
            thread = "caller" if number.strip() == "1" else "worker"
            stacks.append(NativeStack(thread, tuple(reversed(frames))))
    return sorted(stacks, key=lambda stack: stack.thread != "caller")


def readable(symbol: str) -> str:
    """A function's name without its arguments and template arguments.

    >>> readable("at::native::f(c10::ArrayRef<at::Tensor>, double) ()")
    'at::native::f'
    >>> readable("_ZN2at8internal15invoke_parallelIZNS_6native4stepEvE_._omp_fn.0 ()")
    'at::internal::invoke_parallel::native::step, parallel body'
    """
    name = re.sub(r"\s*\(\.*\)$", "", symbol.strip()).replace("(anonymous namespace)::", "")
    body = ""
    if "_omp_fn" in name:  # GCC's name for what it cut out of a function that calls GOMP_parallel
        body = ", parallel body"
        if name.startswith("_Z"):
            return "::".join(_identifiers(name)) + body
        kernel = re.search(r"at::native::[\w:]+", name)
        name = kernel[0] if kernel else name
    depth, kept = 0, ""
    for letter in re.sub(r"\s*\[clone [^]]*\]", "", name):
        depth += letter in "(<"
        kept += letter if depth == 0 else ""
        depth -= letter in ")>"
    return kept.removeprefix("void ").strip() + body


def _identifiers(mangled: str) -> list[str]:
    """The names in a mangled symbol that demanglers give up on, in order, each once."""
    found: dict[str, None] = {}
    at = 0
    while match := re.compile(r"(\d+)").search(mangled, at):
        length = int(match[1])
        word = mangled[match.end() : match.end() + length]
        whole = len(word) == length and re.fullmatch(r"[A-Za-z_]\w*", word)
        if whole and not word.startswith("_GLOBAL__N"):
            found[word] = None
        at = match.end() + (length if whole else 0)
    return list(found)
