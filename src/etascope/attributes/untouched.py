"""An evaluation leaves no trace: what it changes in a model is put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from etascope.attributes.album import Album, Portrait
from etascope.attributes.kept import GONE, Roots, assign, known_in, sketch, values_of
from etascope.attributes.painter import Painter
from etascope.attributes.reader import Reader
from etascope.errors import UsageError
from etascope.tensors import bytes_of, numbers_of

LARGE = 1 << 16  # bytes of a tensor above which an evaluation copies it only as long as it must

LAZY = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)

# Whether an evaluation changed a large tensor, of those that one has been looked at with.
_CHANGES: Any = WeakIdKeyDictionary()


@contextmanager
def untouched(roots: Roots) -> Iterator[None]:
    """Leave modules, bit for bit, as they are: parameters, buffers and attributes.

    A large tensor is copied and compared once; where that once changed nothing, only its version
    is looked at from then on.

    Raises:
        UsageError: if a large tensor that was left alone before is changed, so that it is lost.
    """
    album = Album(known_in(roots), {}, {})
    first = Painter(album, _copy, first=True)
    before = dict(values_of(roots))
    portraits = {p: first.paint(v) for p, v in before.items() if sketch(v) is None}
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
        album.recall(known_in(roots))
        after = dict(values_of(roots))
        for path in after.keys() - before.keys():
            assign(roots, path, None, gone=True)
        reader, painter = Reader(album), Painter(album, _seen)
        for path, value in before.items():
            if after.get(path, GONE) is not value:
                assign(roots, path, value)
            if path in portraits and not _same(portraits[path], painter.paint(value)):
                reader.read(portraits[path])
    if lost:
        names = [name for name, value in known_in(roots).items() for t in lost if t is value]
        raise UsageError(
            f"an evaluation changed {', '.join(names)}, which the first one had left alone, so it "
            "could not be put back; change it in training only"
        )


def _registered(roots: Roots) -> Iterator[dict[str, Any]]:
    for root in roots.values():
        if isinstance(root, nn.Module):
            yield from (root._parameters, root._buffers, root._modules)


def _has_content(value: Any) -> bool:
    lazy = isinstance(value, LAZY)
    return isinstance(value, torch.Tensor) and not lazy and not value.is_meta


def _copy(tensor: torch.Tensor) -> torch.Tensor | tuple[int, int]:
    """A copy of a tensor, or of a large one that was left alone before its version."""
    small = tensor.layout is not torch.strided or tensor.nbytes <= LARGE
    if small or _CHANGES.get(tensor, True):
        return tensor.detach().clone()
    return tensor._version, tensor.data_ptr()


def _seen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _put_back(tensor: torch.Tensor, copy: Any) -> bool:
    """Make a tensor what it was; False if nobody knows what that is."""
    unchanged = _is_same(tensor, copy)
    if bytes_of(tensor) > LARGE:
        _CHANGES[tensor] = not unchanged
    if not unchanged and isinstance(copy, torch.Tensor):
        tensor.data.copy_(copy)
    return unchanged or isinstance(copy, torch.Tensor)


def _is_same(tensor: torch.Tensor, copy: Any) -> bool:
    if not isinstance(copy, torch.Tensor):
        return bool(copy == (tensor._version, tensor.data_ptr()))
    if tensor.layout is not torch.strided:
        return tensor.layout is copy.layout and numbers_of(tensor) == numbers_of(copy)
    try:
        return tensor.dtype == copy.dtype and torch.equal(tensor, copy)
    except (RuntimeError, TypeError, NotImplementedError):  # not every kind can be compared
        return False


def _same(before: Portrait, after: Portrait) -> bool:
    """Whether two portraits show the same; the second one holds the tensors themselves."""
    if isinstance(after, torch.Tensor):
        unchanged = _is_same(after, before)
        if bytes_of(after) > LARGE:
            _CHANGES[after] = not unchanged
        return unchanged
    if type(before) is not list or type(after) is not list:
        return type(before) is type(after) and (before is after or before == after)
    return len(before) == len(after) and all(map(_same, before, after))
