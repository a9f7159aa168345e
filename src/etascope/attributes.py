"""What modules and optimizers keep beside parameters, buffers and state_dicts.

A counter, a list of losses, a tensor handed from batch to batch: plain attributes change in a
forward pass, and neither a state_dict nor `torch.save` knows of them. What has changed since a
trial was built is part of its state; what an evaluation changes is put back after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from etascope.errors import UsageError
from etascope.portraits import SCALARS, Album, Painter, Portrait, Reader, digest
from etascope.reach import HOOKS, attributes_of

GONE = ["gone"]
FLAGS = "requires_grad()"  # stands for the flags of a module's parameters among its attributes
REGISTERED = ("_parameters", "_buffers", "_modules")
OPTIMIZER_STATE = frozenset({"state", "param_groups", "defaults"})  # what its state_dict holds
LARGE = 1 << 16  # bytes of a tensor above which an evaluation copies it only as long as it must

# Whether an evaluation changed a large tensor, of those that one has been looked at with.
_CHANGES: Any = WeakIdKeyDictionary()

Roots = Mapping[str, Any]  # modules, optimizers and the like, by name


class Attributes:
    """The attributes of a trial that has just been built, to tell what they become.

    Args:
        roots: its objects. Their parameters, buffers and state_dicts are no part of this.
        outside: objects that are not the trial's own, by identity; they are left alone.
    """

    def __init__(self, roots: Roots, outside: Mapping[int, Any]) -> None:
        self._roots = dict(roots)
        self._album = Album(_known(roots), {}, outside)
        self._before = {
            path: _sketch(value) or self._print(value, first=True)
            for path, value in _values(self._roots)
        }

    def changed(self) -> tuple[dict[str, Portrait], list[str]]:
        """What differs from the beginning, as portraits by path, and what of it has none.

        The tensors in a portrait are those of the attributes themselves.
        """
        self._album.recall(_known(self._roots))
        painter = Painter(self._album, torch.Tensor.detach)
        changed: dict[str, Portrait] = {}
        lost = []
        values = dict(_values(self._roots))
        for path, value in values.items():
            before = self._before.get(path)
            if before is not None and before == (_sketch(value) or self._print(value)):
                continue
            painter.strangers = False
            portrait = painter.paint(value)
            if painter.strangers:
                lost.append(path)
            else:
                changed[path] = portrait
        changed.update({path: GONE for path in self._before.keys() - values.keys()})
        return changed, lost

    def restore(self, changed: Mapping[str, Portrait]) -> None:
        """Make the attributes what they were where `changed` was taken.

        Raises:
            ValueError: if these are not the attributes of such a trial.
        """
        self._album.recall(_known(self._roots))
        reader = Reader(self._album)
        for path, portrait in changed.items():
            try:
                value = None if portrait == GONE else reader.read(portrait)
                _assign(self._roots, path, value, gone=portrait == GONE)
            except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
                raise ValueError(f"{path} is not what it was ({error!r})") from error

    def _print(self, value: Any, *, first: bool = False) -> str:
        return repr(Painter(self._album, digest, first=first).paint(value))


@contextmanager
def untouched(roots: Roots) -> Iterator[None]:
    """Leave modules, bit for bit, as they are: parameters, buffers and attributes.

    A large tensor is copied and compared once; where that once changed nothing, only its version
    is looked at from then on.

    Raises:
        UsageError: if a large tensor that was left alone before is changed, so that it is lost.
    """
    album = Album(_known(roots), {}, {})
    first = Painter(album, _copy, first=True)
    before = dict(_values(roots))
    portraits = {p: first.paint(v) for p, v in before.items() if _sketch(v) is None}
    registered = [(held, dict(held)) for held in _registered(roots)]
    tensors = {id(t): t for _, held in registered for t in held.values() if _has_content(t)}
    copies = [(tensor, _copy(tensor)) for tensor in tensors.values()]
    try:
        yield
    finally:
        for held, entries in registered:
            if len(held) != len(entries) or any(held[k] is not v for k, v in entries.items()):
                held.clear()
                held.update(entries)
        lost = [tensor for tensor, copy in copies if not _put_back(tensor, copy)]
        album.recall(_known(roots))
        after = dict(_values(roots))
        for path in after.keys() - before.keys():
            _assign(roots, path, None, gone=True)
        reader, painter = Reader(album), Painter(album, _seen)
        for path, value in before.items():
            if after.get(path, GONE) is not value:
                _assign(roots, path, value)
            if path in portraits and not _same(portraits[path], painter.paint(value)):
                reader.read(portraits[path])
    if lost:
        names = [name for name, value in _known(roots).items() for t in lost if t is value]
        raise UsageError(
            f"an evaluation changed {', '.join(names)}, which the first one had left alone, so it "
            "could not be put back; change it in training only"
        )


# The attributes of roots ----------------------------------------------------------------------


def _values(roots: Roots) -> Iterator[tuple[str, Any]]:
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


def _assign(roots: Roots, path: str, value: Any, *, gone: bool = False) -> None:
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


def _known(roots: Roots) -> dict[str, Any]:
    """Parameters, buffers and the roots themselves, by the names that stand for them."""
    known = dict(roots)
    for name, root in roots.items():
        if isinstance(root, nn.Module):
            for held in (root._parameters, root._buffers):
                known.update({f"{name}.{k}": t for k, t in held.items() if t is not None})
    return known


def _registered(roots: Roots) -> Iterator[dict[str, Any]]:
    for root in roots.values():
        if isinstance(root, nn.Module):
            yield from (root._parameters, root._buffers, root._modules)  # type: ignore[misc]


def _sketch(value: Any) -> tuple[Any, ...] | None:
    """What an immutable value of plain parts is compared by; None for any other."""
    if type(value) in SCALARS:
        return type(value), value
    if type(value) is tuple and all(type(item) in SCALARS for item in value):
        return tuple, repr(value)
    return None


# Tensors around an evaluation -----------------------------------------------------------------


def _has_content(value: Any) -> bool:
    lazy = isinstance(value, nn.parameter.UninitializedTensorMixin)
    return isinstance(value, torch.Tensor) and not lazy and not value.is_meta


def _copy(tensor: torch.Tensor) -> torch.Tensor | tuple[int, int]:
    """A copy of a tensor, or of a large one that was left alone before its version."""
    if tensor.nbytes <= LARGE or _CHANGES.get(tensor, True):
        return tensor.detach().clone()
    return tensor._version, tensor.data_ptr()


def _seen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _put_back(tensor: torch.Tensor, copy: Any) -> bool:
    """Make a tensor what it was; False if nobody knows what that is."""
    unchanged = _is_same(tensor, copy)
    if tensor.nbytes > LARGE:
        _CHANGES[tensor] = not unchanged
    if not unchanged and isinstance(copy, torch.Tensor):
        tensor.data.copy_(copy)
    return unchanged or isinstance(copy, torch.Tensor)


def _is_same(tensor: torch.Tensor, copy: Any) -> bool:
    if not isinstance(copy, torch.Tensor):
        return bool(copy == (tensor._version, tensor.data_ptr()))
    try:
        return tensor.dtype == copy.dtype and torch.equal(tensor, copy)
    except (RuntimeError, TypeError, NotImplementedError):  # not every kind can be compared
        return False


def _same(before: Portrait, after: Portrait) -> bool:
    """Whether two portraits show the same; the second one holds the tensors themselves."""
    if isinstance(after, torch.Tensor):
        unchanged = _is_same(after, before)
        if after.nbytes > LARGE:
            _CHANGES[after] = not unchanged
        return unchanged
    if type(before) is not list or type(after) is not list:
        return type(before) is type(after) and (before is after or before == after)
    return len(before) == len(after) and all(map(_same, before, after))
