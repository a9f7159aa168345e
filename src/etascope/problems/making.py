"""What a factory makes, so that every trial has its own: as it is made, or a copy of it.

A fresh product is used as the factory made it, whatever cannot be copied in it. A factory that
hands out the same module, parameter or memory at every call is found out by calling it twice, and
copies of its products are used, so that no trial sees the weights of another one.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from etascope.errors import RAISED, UsageError
from etascope.problems.copies import copied, memory_of, parts_of, plain_attributes

_ATOMS = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device)


class Maker:
    """Calls a factory of the user's and gives out what it makes, sharing nothing between calls.

    What it finds out about the factory it finds out anew in every process.

    Args:
        factory: gives a module, or a dict of the parts of a state, modules among them.
        name: how errors call it.
    """

    def __init__(self, factory: Callable[..., Any], name: str) -> None:
        self._factory, self._name = factory, name
        self._begin()

    def _begin(self) -> None:
        self._shared: str | None = None  # what two calls share, in words
        self._known = False
        self._attributes: list[tuple[str, str]] = []
        self._given_out: dict[Hashable, weakref.ref[Any]] = {}

    def __getstate__(self) -> tuple[Callable[..., Any], str]:
        return self._factory, self._name

    def __setstate__(self, state: tuple[Callable[..., Any], str]) -> None:
        self._factory, self._name = state
        self._begin()

    def make(self, seeded: Callable[[], None], *given: Any) -> Any:
        """What the factory makes of `given`, right after `seeded` has been called.

        Raises:
            UsageError: if calls share something that cannot be copied, or begin to share.
        """
        first = None
        if not self._known:
            seeded()
            first = self._factory(*given)
        seeded()
        product = self._factory(*given)
        if first is not None:
            self._compare(first, product)
        if self._shared is not None:
            return self._copy(product)
        self._give_out(product)
        return product

    def _compare(self, first: Any, second: Any) -> None:
        """Remember what two products share."""
        ours, theirs = _identities(first), _identities(second)
        both = [name for key, (name, _) in ours.items() if key in theirs]
        self._shared = both[0] if both else None
        self._attributes = [] if both else _shared_attributes(first, second)
        self._known = True

    def _copy(self, product: Any) -> Any:
        try:
            return copied(product, _modules(product))
        except UsageError as error:
            raise UsageError(
                f"{self._name} hands out {self._shared} again at every call, and a copy for each "
                f"trial cannot be made: {error}; build it anew in each call"
            ) from error

    def _give_out(self, product: Any) -> None:
        _isolate(product, self._attributes)
        for key, (name, part) in _identities(product).items():
            before = self._given_out.get(key, lambda: None)()
            # A tensor that was moved to other memory gave its own back, to whoever asked next.
            moved = isinstance(key, tuple) and before is not None and memory_of(before) != key[1]
            if before is not None and not moved:
                raise UsageError(
                    f"{self._name} hands out {name} again, which a training has changed since; "
                    "build it anew in each call"
                )
            with suppress(TypeError):  # not everything can be referred to weakly
                self._given_out[key] = weakref.ref(part, self._forget(key))

    def _forget(self, key: Hashable) -> Callable[[object], None]:
        known = self._given_out

        def forget(_: object) -> None:
            known.pop(key, None)

        return forget


def _modules(product: Any) -> dict[str, nn.Module]:
    """The modules of a product by name."""
    if isinstance(product, nn.Module):
        return {"": product}
    parts = product.items() if isinstance(product, dict) else ()
    return {str(name): part for name, part in parts if isinstance(part, nn.Module)}


def _identities(product: Any) -> dict[Hashable, tuple[str, Any]]:
    """Whatever of a product another one may share, each with its name: parts and their memory."""
    found: dict[Hashable, tuple[str, Any]] = {}
    for name, part in product.items() if isinstance(product, dict) else ():
        if hasattr(part, "state_dict"):
            found[id(part)] = f"the {type(part).__name__} {name!r}", part
    for prefix, root in _modules(product).items():
        for name, module in root.named_modules(prefix=prefix):
            what = f"the {type(module).__name__} {name!r}" if name else "the same module"
            found[id(module)] = what, module
        for name, tensor in (
            *root.named_parameters(prefix=prefix),
            *root.named_buffers(prefix=prefix),
        ):
            found[id(tensor)] = f"the tensor {name!r}", tensor
            if memory := memory_of(tensor):
                found["memory", memory] = f"the memory of {name!r}", tensor
    return found


def _by_name(product: Any) -> dict[str, nn.Module]:
    """Every module in a product by its full name."""
    return {
        name: module
        for prefix, root in _modules(product).items()
        for name, module in root.named_modules(prefix=prefix)
    }


def _shared_attributes(first: Any, second: Any) -> list[tuple[str, str]]:
    """The plain attributes, by module and name, that are one object in both products."""
    shared, others = [], _by_name(second)
    for name, module in _by_name(first).items():
        theirs = plain_attributes(others[name]) if name in others else {}
        for key, value in plain_attributes(module).items():
            if theirs.get(key) is value and not isinstance(value, _ATOMS):
                shared.append((name, key))
    return shared


def _isolate(product: Any, attributes: list[tuple[str, str]]) -> None:
    """Give a product copies of the plain attributes that all products share, where that can be."""
    if not attributes:
        return
    memo = {id(part): part for root in _modules(product).values() for part in parts_of(root)}
    modules = _by_name(product)
    for name, key in attributes:
        kept = vars(modules[name]) if name in modules else {}
        if key in kept:
            with suppress(*RAISED):  # a lock, say, which all may share
                kept[key] = copy.deepcopy(kept[key], memo)
