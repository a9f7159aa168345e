"""Runs peers side by side: all are started and warmed up, then take turns round by round."""

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lineup import Peer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PATIENCE = 300  # seconds for a start or a repeat; the compiled peer needs a minute


class GoneError(Exception):
    """A peer cannot be measured (any more); the message says why."""


def python_of(environment: str) -> Path:
    """Return the interpreter of an environment."""
    if environment == "project":
        return Path(sys.executable)
    return ROOT / f".venv-bench-{environment}" / "bin" / "python"


def surroundings(extra: Mapping[str, str] = {}) -> dict[str, str]:
    """Return the environment variables of a peer."""
    folders = (ROOT / "src", HERE, HERE / "peers")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), **extra}


class Running:
    """A peer's process."""

    def __init__(self, peer: Peer, experiment: Mapping[str, Any]) -> None:
        self.startup = 0.0
        self.facts: dict[str, Any] = {}
        self.repeats: list[dict[str, Any] | None] = []
        self.gone: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            self._start(peer, experiment)
        except GoneError as reason:
            self._leave(str(reason))

    def _start(self, peer: Peer, experiment: Mapping[str, Any]) -> None:
        python = python_of(peer.python)
        if not python.exists():
            raise GoneError(f"there is no {python.parent.parent.name}; `make bench` builds it")
        told = json.dumps({**experiment, "options": peer.options})
        began = time.time()
        self._process = subprocess.Popen(
            [str(python), str(HERE / "peers" / f"{peer.script}.py"), told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=surroundings(peer.env),
            start_new_session=True,  # so that its helpers can be ended with it
        )
        answer = self._answer()
        if "unavailable" in answer:
            raise GoneError(answer["unavailable"])
        self.startup = answer["first_step"] - began
        self.facts = answer["facts"]

    def go(self) -> None:
        """Have one repeat timed."""
        if self._process is None:
            return
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()
            self.repeats.append(self._answer())
        except (GoneError, OSError) as reason:
            self._leave(str(reason))

    def end(self) -> None:
        """Close its input, which ends it; if it does not end, end it and what it started."""
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            raise GoneError(f"no answer in {PATIENCE} seconds")
        line = self._process.stdout.readline()
        if not line:
            raise GoneError(f"it ended: {self._last_words()}")
        return json.loads(line)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    def _leave(self, reason: str) -> None:
        self.gone = reason
        self.end()


def measure(
    peers: Sequence[Peer], experiment: Mapping[str, Any], rounds: int
) -> tuple[dict[str, Running], list[float]]:
    """Start every peer, then let them take turns in another order each round.

    Returns:
        The peers by name, ended, and the machine's load average before each round.
    """
    running, loads = {}, []
    for peer in peers:
        _say(f"starting {peer.name}")
        running[peer.name] = Running(peer, experiment)
        if running[peer.name].gone:
            _say(f"  not measured: {running[peer.name].gone}")
    try:
        for number in range(rounds):
            loads.append(os.getloadavg()[0])
            _say(f"round {number + 1} of {rounds}, load {loads[-1]:.2f}")
            names = list(running)
            random.Random(number).shuffle(names)
            for name in names:
                running[name].go()
                running[name].repeats.extend([None] * (number + 1 - len(running[name].repeats)))
                last = running[name].repeats[-1]
                _say(f"  {name}: {last['seconds']:.2f} s" if last else f"  {name}: gone")
    finally:
        for peer in running.values():
            peer.end()
    return running, loads


def matrix_products(threads: Sequence[int]) -> list[dict[str, Any]]:
    """Return the best rates of a matrix product with so many threads."""
    script = HERE / "peers" / "matrix_product.py"
    return [
        json.loads(subprocess.check_output([sys.executable, script, str(n)], env=surroundings()))
        for n in threads
    ]


def shell_startup(arguments: Sequence[str], repeats: int) -> list[float] | str:
    """Return the seconds from the shell to the first step of `etascope`, or why there are none."""
    seconds = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            script, out = HERE / "peers" / "shell_startup.py", f"{folder}/study"
            began = time.time()
            try:
                done = subprocess.run(
                    [sys.executable, script, *arguments, "--out", out],
                    env=surroundings(),
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return f"it did not stop within {PATIENCE} seconds"
        told = [line for line in done.stdout.splitlines() if line.startswith("first step ")]
        if not told:
            words = [line.strip("│─╭╮╰╯ ") for line in (done.stdout + done.stderr).splitlines()]
            return next((line for line in reversed(words) if line), "it said nothing")
        seconds.append(float(told[0].split()[-1]) - began)
    return seconds


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
