"""What the plain attributes of a trial have become since it was built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from etascope.attributes.album import SCALARS, Album, Portrait, class_name
from etascope.attributes.painter import Painter, digest
from etascope.attributes.reader import Reader
from etascope.reach import ATOMS, HOOKS, attributes_of, reachable

GONE = ["gone"]  # the portrait of an attribute that was deleted
FLAGS = "requires_grad()"  # stands for the flags of a module's parameters among its attributes
REGISTERED = ("_parameters", "_buffers", "_modules")
OPTIMIZER_STATE = frozenset({"state", "param_groups", "defaults"})  # what its state_dict holds
UNCHANGING = (*ATOMS[:-2], type, tuple, frozenset, FunctionType, MethodType, partial)

Roots = Mapping[str, Any]  # modules, optimizers and the like, by name


class Attributes:
    """The attributes of a trial that has just been built, to tell what they become.

    Args:
        roots: its objects. Their parameters, buffers and state_dicts are no part of this.
        parts: code and data of the user's: what they hold is not the trial's own and is left
            alone, and objects of their classes may be made.
    """

    def __init__(self, roots: Roots, parts: Mapping[str, Any]) -> None:
        self._roots = dict(roots)
        around = [value for _, value in reachable(parts)]
        classes = {class_name(kind): kind for kind in around if isinstance(kind, type)}
        outside = {id(value): value for value in around if not isinstance(value, UNCHANGING)}
        self._album = Album(known_in(roots), classes, outside)
        self._before = {
            path: sketch(value) or self._print(value, first=True)
            for path, value in values_of(self._roots)
        }

    def changed(self) -> tuple[dict[str, Portrait], list[str]]:
        """What differs from the beginning, as portraits by path, and what of it has none.

        The tensors in a portrait are those of the attributes themselves.
        """
        self._album.recall(known_in(self._roots))
        painter = Painter(self._album, torch.Tensor.detach)
        changed: dict[str, Portrait] = {}
        lost = []
        values = dict(values_of(self._roots))
        for path, value in values.items():
            before = self._before.get(path)
            if before is not None and before == (sketch(value) or self._print(value)):
                continue
            painter.strangers = False
            portrait = painter.paint(value)
            if painter.strangers:
                lost.append(path)
            else:
                changed[path] = portrait
        changed.update(dict.fromkeys(self._before.keys() - values.keys(), GONE))
        return changed, lost

    def restore(self, changed: Mapping[str, Portrait]) -> None:
        """Make the attributes what they were where `changed` was taken.

        Raises:
            ValueError: if these are not the attributes of such a trial.
        """
        self._album.recall(known_in(self._roots))
        reader = Reader(self._album)
        for path, portrait in changed.items():
            try:
                value = None if portrait == GONE else reader.read(portrait)
                assign(self._roots, path, value, gone=portrait == GONE)
            except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
                raise ValueError(f"{path} is not what it was ({error!r})") from error

    def _print(self, value: Any, *, first: bool = False) -> str:
        return repr(Painter(self._album, digest, first=first).paint(value))


def values_of(roots: Roots) -> Iterator[tuple[str, Any]]:
    """Every attribute by path, what is registered and what a state_dict holds left out."""
    for name, root in roots.items():
        hidden = OPTIMIZER_STATE if isinstance(root, Optimizer) else REGISTERED
        is_module = isinstance(root, nn.Module)
        for key, value in attributes_of(root).items():
            if is_module and key in HOOKS:
                if value and isinstance(value, dict):  # what hooks close over
                    yield from ((f"{name}.{key}#{n}", hook) for n, hook in value.items())
            elif key not in hidden:
                yield f"{name}.{key}", value
        if is_module and root._parameters:
            own = root._parameters.items()
            flags = [item for key, p in own if p is not None for item in (key, p.requires_grad)]
            yield f"{name}.{FLAGS}", tuple(flags)


def assign(roots: Roots, path: str, value: Any, *, gone: bool = False) -> None:
    name, _, key = path.rpartition(".")
    root = roots[name]
    if key == FLAGS:
        for parameter, flag in zip(value[::2], value[1::2], strict=True):
            root._parameters[parameter].requires_grad_(flag)
    elif "#" in key:
        return  # a hook stays where it is; what it closes over has been filled in
    elif gone:
        object.__delattr__(root, key)
    elif attributes_of(root).get(key, GONE) is not value:
        object.__setattr__(root, key, value)


def known_in(roots: Roots) -> dict[str, Any]:
    """Parameters, buffers and the roots themselves, by the names that stand for them."""
    known = dict(roots)
    for name, root in roots.items():
        if isinstance(root, nn.Module):
            for held in (root._parameters, root._buffers):
                known.update({f"{name}.{k}": t for k, t in held.items() if t is not None})
    return known


def sketch(value: Any) -> tuple[Any, ...] | None:
    """What an immutable value of plain parts is compared by; None for any other."""
    if type(value) in SCALARS:
        return type(value), value
    if type(value) is tuple and all(type(item) in SCALARS for item in value):
        return tuple, repr(value)
    return None
