"""Where all randomness of a trial comes from: named streams, each a pure function of its key.

Step `t` of seed `s` draws from the stream `(s, "step", t)`, epoch `e` is ordered by
`(s, "order", e)`, and so on. Nothing depends on what was drawn before, so a trial can be paused,
killed and resumed anywhere, and what runs beside it cannot shift it. Generators of the user's own,
in a dataset, a transform or a loss, are found and treated like the global ones: each has a stream
of its own, named by the path under which it was found.
"""

from __future__ import annotations

import hashlib
import random
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from etascope.reach import reachable

_ONE_AT_A_TIME = threading.RLock()
_MERSENNE_TWISTER = np.random.RandomState(0)  # only ever seeded, to see the state that this gives
_ADOPTED: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
_LEVELS: list[dict[int, tuple[Any, Any]]] = []  # of `undisturbed`: what to give back on leaving


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

    Every adopted generator is set to a stream of its own, since two that drew the same numbers
    would make independent noise equal. Call it inside `undisturbed` only.
    """
    number = stream(seed, name, index)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - user code may draw from the global state
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        getattr(module, "manual_seed_all", module.manual_seed)(number)
    for adopted in list(_ADOPTED.values()):
        for path, own in adopted.items():
            _seed(own, stream(seed, f"{name} of {path}", index))


def adopt(owner: object, roots: Mapping[str, object]) -> bool:
    """Seed the generators that `roots` reach together with the global ones, from here on.

    They are given back as they were when `undisturbed`, inside which this is called, is left, and
    are let go with their owner.

    Args:
        owner: the problem, model or optimizer whose generators they are.
        roots: where to look for them, by name: see `etascope.reach.reachable`.

    Returns:
        Whether there are others than the last time.
    """
    before = set(map(id, _ADOPTED.get(owner, {}).values()))
    found = {path: value for path, value in reachable(roots) if _is_own_generator(value)}
    for own in found.values():
        for level in _LEVELS:
            level.setdefault(id(own), (own, generator_state(own)[1]))
    if found:
        _ADOPTED[owner] = found
    else:
        _ADOPTED.pop(owner, None)
    return bool(set(map(id, found.values())) - before)


def random_states() -> str:
    """The states of the global and the adopted generators: equal where the same was drawn."""
    adopted = [own for found in list(_ADOPTED.values()) for own in found.values()]
    states = [generator_state(own)[1] for own in (random._inst, np.random.mtrand._rand, *adopted)]
    told = [state[1].tolist() if isinstance(state, list) else state for state in states]
    told.append(torch.get_rng_state().tolist())
    return hashlib.sha256(repr(told).encode()).hexdigest()


def is_generator(value: object) -> bool:
    """Whether it is a random generator whose state can be told and set."""
    kinds = (random.Random, torch.Generator, np.random.Generator, np.random.RandomState)
    return isinstance(value, kinds) and not isinstance(value, random.SystemRandom)


def _is_own_generator(value: object) -> bool:
    """The same, and none of the global ones."""
    ours = (random._inst, torch.default_generator, np.random.mtrand._rand)
    return is_generator(value) and not any(value is known for known in ours)


def generator_state(own: Any) -> tuple[str, Any]:
    """What kind a generator is of, and its state as plain values."""
    if isinstance(own, torch.Generator):
        return "torch", [str(own.device), own.get_state()]
    if isinstance(own, random.Random):
        return "python", own.getstate()
    if isinstance(own, np.random.RandomState):
        return "legacy", own.get_state(legacy=False)
    return "numpy", own.bit_generator.state


def give_back(own: Any, state: Any) -> None:
    """Set a generator to a state of `generator_state`."""
    if isinstance(own, random.Random):
        own.setstate(state)
    elif isinstance(own, torch.Generator):
        own.set_state(state[1])
    elif isinstance(own, np.random.RandomState):
        own.set_state(state)
    else:
        own.bit_generator.state = state


def generator_from(kind: str, state: Any) -> Any:
    """A new generator of a kind and in a state; raises ValueError for an unknown kind."""
    own: Any
    if kind == "torch":
        own = torch.Generator(state[0])
    elif kind == "python":
        own = random.Random()
    elif kind in ("legacy", "numpy") and state["bit_generator"] in BIT_GENERATORS:
        bits = getattr(np.random, state["bit_generator"])()
        own = np.random.RandomState(bits) if kind == "legacy" else np.random.Generator(bits)
    else:
        raise ValueError(f"no random generator is of the kind {kind!r}")
    give_back(own, state)
    return own


def _seed(own: Any, number: int) -> None:
    if isinstance(own, torch.Generator):
        own.manual_seed(number)
    elif isinstance(own, random.Random):
        own.seed(number)
    else:
        legacy = isinstance(own, np.random.RandomState)
        bits = own._bit_generator if legacy else own.bit_generator
        if isinstance(bits, np.random.MT19937):  # forty times as fast as by a SeedSequence
            fresh = _MERSENNE_TWISTER
            fresh.seed(number % 2**32)
        else:
            fresh = np.random.RandomState(type(bits)(np.random.SeedSequence(number)))
        state = fresh.get_state(legacy=False)
        if legacy:  # it holds half of a pair of normals back
            own.set_state(state)
        else:
            bits.state = {key: value for key, value in state.items() if "gauss" not in key}


@contextmanager
def _restored_generators() -> Iterator[None]:
    """Put adopted generators back on leaving, those adopted meanwhile among them."""
    adopted = [own for found in list(_ADOPTED.values()) for own in found.values()]
    _LEVELS.append({id(own): (own, generator_state(own)[1]) for own in adopted})
    try:
        yield
    finally:
        for own, state in _LEVELS.pop().values():
            give_back(own, state)


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
        _restored_generators(),
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
