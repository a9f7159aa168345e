"""Where all randomness of a trial comes from: named streams, each a pure function of its key.

Step `t` of seed `s` draws from the stream `(s, "step", t)`, epoch `e` is ordered by
`(s, "order", e)`, and so on. Nothing depends on what was drawn before, so a trial can be paused,
killed and resumed anywhere, and what runs beside it cannot shift it.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_ONE_AT_A_TIME = threading.RLock()


def stream(seed: int, name: str, index: int = 0) -> int:
    """A 63-bit number for the stream `(seed, name, index)`, by SHA-256.

    >>> stream(0, "step", 1) == stream(0, "step", 1)
    True
    >>> stream(0, "step", 1) == stream(0, "step", 2)
    False
    """
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, name: str, index: int = 0) -> torch.Generator:
    """A torch generator of its own for the stream, for draws that touch no global state."""
    return torch.Generator().manual_seed(stream(seed, name, index))


def seed_everything(device: torch.device, seed: int, name: str, index: int = 0) -> None:
    """Set the global generators of random, numpy and torch (the CPU and `device`) to the stream.

    Call it inside `undisturbed` only.
    """
    number = stream(seed, name, index)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - user code may draw from the global state
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        getattr(module, "manual_seed_all", module.manual_seed)(number)


@contextmanager
def _restored_randomness(device: torch.device) -> Iterator[None]:
    """Put the global random state back on leaving, also when an exception passes."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    module = None if device.type == "cpu" else torch.get_device_module(device)
    several = hasattr(module, "get_rng_state_all")
    if module is not None:
        accelerator = module.get_rng_state_all() if several else module.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if module is not None:
            (module.set_rng_state_all if several else module.set_rng_state)(accelerator)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """The process as training needs it, and the caller's again afterwards.

    One thread on a CPU and deterministic kernels on a GPU, so that a trial is the same bit for
    bit wherever it runs; gradients on and autocast off, whatever the caller has chosen. All of
    this belongs to the process, so only one thread of it is inside at a time.
    """
    with (
        _ONE_AT_A_TIME,
        _restored_randomness(device),
        _restored_settings(device),
        spared_compiler(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast(device.type, enabled=False),
    ):
        yield


@contextmanager
def spared_compiler() -> Iterator[None]:
    """Keep optimizers from importing torch's compiler, which takes seconds and makes a folder.

    Their methods do so at their first call, only to be left out of compilation. Nothing is
    compiled around an optimizer here, so they are told for a while that they are left out. Steps
    that torch decorates for `differentiable` (its SGD's is one) import it all the same.
    """
    name, told = "__dynamo_disable", []
    for method in vars(torch.optim.Optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if plain is not None and not hasattr(plain, name):
            setattr(plain, name, plain)
            told.append(plain)
    try:
        yield
    finally:
        for plain in told:
            delattr(plain, name)


@contextmanager
def _restored_settings(device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    before = _determinism()
    try:
        if threads != 1:
            torch.set_num_threads(1)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        if device.type != "cpu":
            torch.use_deterministic_algorithms(True, warn_only=True)
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if _determinism() != before:  # the call alone imports torch's compiler, which takes long
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        if threads != 1:
            torch.set_num_threads(threads)


def _determinism() -> tuple[bool, bool]:
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warn_only
