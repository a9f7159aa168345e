"""What a problem is where it comes from, so that no worker trains on another one.

A pickle carries what a problem holds, not what its code looks up: a global variable of a module,
the environment, a file, the order of a set. So the first batch of seed 0 and the first loss of its
untrained model are worked out here and in every worker, and must be the same.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import torch

from etascope.environment import describe_environment
from etascope.errors import RAISED, EtascopeError, text_of
from etascope.problems.checks import _first_batch, _forward
from etascope.problems.problem import Problem
from etascope.randomness import seed_everything, undisturbed

ROUNDING = 1e-3  # of a loss on another processor; a study's fingerprint has four digits of it
DEEPEST = 20  # containers in one another that a digest looks into


class Settings(NamedTuple):
    """What a script may set for its whole process, and what training in it then rests on."""

    dtype: torch.dtype
    device: str
    matmul_precision: str
    deterministic: bool
    flush_denormal: bool
    numpy_errors: dict[str, Any]
    recursion_limit: int

    @classmethod
    def current(cls) -> Settings:
        """Those of this process."""
        least = torch.tensor([5e-324], dtype=torch.float64, device="cpu")
        return cls(
            dtype=torch.get_default_dtype(),
            device=str(torch.get_default_device()),
            matmul_precision=torch.get_float32_matmul_precision(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            flush_denormal=bool((least * 1 == 0).all()),
            numpy_errors=dict(np.geterr()),
            recursion_limit=sys.getrecursionlimit(),
        )

    def apply(self) -> None:
        """Have this process, which is a worker, train with them."""
        ours = Settings.current()
        torch.set_default_dtype(self.dtype)
        torch.set_float32_matmul_precision(self.matmul_precision)
        np.seterr(**self.numpy_errors)
        sys.setrecursionlimit(max(self.recursion_limit, ours.recursion_limit))
        if self.flush_denormal:
            torch.set_flush_denormal(True)
        if self.device != ours.device:  # once set, it slows every call of torch down
            torch.set_default_device(self.device)
        if self.deterministic != ours.deterministic:  # the call imports torch's compiler
            torch.use_deterministic_algorithms(self.deterministic, warn_only=True)


class Witness(NamedTuple):
    """What a problem is in one process.

    Attributes:
        settings: of the process.
        processor: another one may add in another order.
        batch: a digest of the first batch; empty where there is none.
        loss: of the untrained model on it; None where there is none.
        error: what was raised instead.
    """

    settings: Settings
    processor: str
    batch: str = ""
    loss: float | None = None
    error: str = ""


def witness_of(problem: Problem) -> Witness:
    """Work out what a problem is here: one batch, one model and one loss."""
    cpu = torch.backends.cpu.get_cpu_capability()
    with undisturbed(problem.torch_device):
        processor = f"{problem.torch_device}, {describe_environment()['cpu']}, {cpu}"
        witness = Witness(Settings.current(), processor)
        try:
            batch = _first_batch(problem)
            witness = witness._replace(batch=digest_of(batch))
            model = problem.make_model(0)
            if problem.owns_step:
                seed_everything(problem.torch_device, 0, "check")
                loss = problem.loss(model, batch)
            else:
                loss = _forward(problem, model, batch)
            return witness._replace(loss=float(loss.detach()))
        except RAISED as error:
            return witness._replace(error=text_of(error))


def compare(theirs: Witness, ours: Witness) -> None:
    """Compare what a problem is where it comes from with what it is in this worker.

    Raises:
        EtascopeError: if it is another one.
    """
    difference = None
    if bool(theirs.error) != bool(ours.error):
        here, there = ours.error or "nothing", theirs.error or "nothing"
        difference = f"raises {here} in a worker and {there} in the process that started it"
    elif theirs.batch != ours.batch:
        difference = "has another first batch in a worker than in the process that started it"
    elif not _same(theirs, ours):
        difference = (
            f"has the first loss {ours.loss!r} in a worker and {theirs.loss!r} in the process "
            "that started it"
        )
    if difference is not None:
        raise EtascopeError(
            f"the problem {difference}, so it rests on something that it does not hold, such as a "
            "global variable of a module, a file or the order of a set; hand that to its "
            "functions and objects, or use engine serial"
        )


def _same(theirs: Witness, ours: Witness) -> bool:
    if theirs.loss is None or ours.loss is None:
        return theirs.loss is ours.loss
    exact = theirs.processor == ours.processor and ours.processor.startswith("cpu")
    if exact or not math.isfinite(theirs.loss):
        return theirs.loss.hex() == ours.loss.hex()
    return math.isclose(theirs.loss, ours.loss, rel_tol=ROUNDING)


# Digests --------------------------------------------------------------------------------------


def digest_of(value: object) -> str:
    """SHA-256 over all numbers and texts in a value: tensors, arrays, containers, attributes.

    Mappings and sets count whatever their order. What is none of these counts by its class.

    >>> digest_of({"a": [1, 2.0]}) == digest_of({"a": [1, 2.0]})
    True
    >>> digest_of([1, 2]) == digest_of([2, 1])
    False
    """
    return _digest(value, 0).hex()


def _digest(value: object, depth: int) -> bytes:
    digest = hashlib.sha256(type(value).__qualname__.encode())
    if depth <= DEEPEST:
        for part in _contents(value, depth + 1):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.digest()


def _contents(value: object, depth: int) -> Iterator[Any]:
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)} {value.layout}".encode()
        yield from map(_numbers, _dense(value))
    elif isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        yield f"{value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).reshape(-1).view(np.uint8).data if value.nbytes else b""
    elif isinstance(value, np.ndarray):
        yield _digest(value.tolist(), depth)
    elif value is None or isinstance(value, (bool, int, float, complex, str)):
        yield repr(value).encode("utf-8", "backslashreplace")
    elif isinstance(value, (bytes, bytearray)):
        yield bytes(value)
    elif isinstance(value, Mapping):
        pairs = ((key, value[key]) for key in value)
        yield from sorted(_digest(pair, depth) for pair in pairs)
    elif isinstance(value, Set):
        yield from sorted(_digest(item, depth) for item in value)
    elif isinstance(value, Sequence):
        yield from (_digest(item, depth) for item in value)
    elif not callable(value):
        yield from sorted(_digest(pair, depth) for pair in getattr(value, "__dict__", {}).items())


def _dense(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Dense tensors that say what a tensor holds."""
    plain = tensor.detach()
    if plain.is_quantized:
        return [plain.int_repr()]
    if plain.is_meta:
        return []
    if plain.is_nested:
        return list(plain.unbind())
    if plain.layout is not torch.strided:
        return [plain.to_dense()]
    return [plain]


def _numbers(tensor: torch.Tensor) -> bytes:
    plain = tensor.cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
