"""What a problem is made of, as a pickle that leaves its memory outside.

All memory goes one way: pickle's own out-of-band buffers. A storage of torch and an array of numpy
are reduced to the bytes that they stand on and to the numbers that say how (dtype, shape, strides,
offset), so that whoever lays out the buffers (`etascope.engines.handover`) sees every view of a
piece of memory as a range of addresses, and can keep ranges that overlap on one piece of memory.
What torch and numpy would lose on the way is added: strides, attributes, gradients, and whether an
array may be written to.
"""

from __future__ import annotations

import io
import mmap
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from types import FunctionType
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import nn

from etascope.engines.importing import by_value

AnyArray = np.ndarray[Any, Any]


class Unmovable(Exception):  # noqa: N818 - it never leaves the engines
    """Something that another process cannot have; its text says why.

    Args:
        why: what is the matter with it.
        remedy: what to do about it.
    """

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.remedy = remedy


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles with all memory outside, and by value what the receiver cannot import.

    Args:
        file: takes the pickle.
        can_be_imported: whether the receiver finds the same module under a name.
        elsewhere: whether the receiver may stand on another machine, without our files.

    Attributes:
        memory: what is outside, in the order in which the pickle asks for it.
    """

    def __init__(
        self, file: io.BytesIO, can_be_imported: Callable[[str], bool], *, elsewhere: bool
    ) -> None:
        self.memory: list[memoryview] = []
        self._files: dict[int, _File] = {}
        self._can_be_imported = cache(can_be_imported)
        self._elsewhere = elsewhere
        super().__init__(file, protocol=5, buffer_callback=self._put_aside)

    def _put_aside(self, buffer: pickle.PickleBuffer) -> None:
        self.memory.append(buffer.raw())

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            return self._reduce_array(obj)
        if isinstance(obj, torch.Tensor):
            return _reduce_tensor(obj)
        if isinstance(obj, torch.storage.TypedStorage):
            return _typed_storage, (obj._untyped_storage, obj.dtype)
        if isinstance(obj, torch.UntypedStorage) and obj.device.type == "cpu":
            return _untyped_storage, (pickle.PickleBuffer(_bytes_of(obj).data),)
        if type(obj) is io.TextIOWrapper and obj not in (sys.stdout, sys.stderr):
            # cloudpickle would put its text in its place, where other offsets hold.
            raise Unmovable("an open file", "open it inside the functions that use it")
        if isinstance(obj, (type, FunctionType)):
            with by_value(obj.__module__, self._can_be_imported):
                return super().reducer_override(obj)
        return super().reducer_override(obj)

    def _reduce_array(self, array: AnyArray) -> Any:
        kind = type(array)
        if kind is not np.ma.MaskedArray and any(
            getattr(kind, name) is not getattr(np.ndarray, name)
            for name in ("__reduce__", "__reduce_ex__", "__setstate__")
        ):
            return NotImplemented  # a class that knows how it is pickled
        attributes = dict(getattr(array, "__dict__", {}))
        attributes.pop("_mmap", None)
        if array.dtype.hasobject:  # pointers, which mean nothing to another process
            reduced: tuple[Any, ...] = array.__reduce__()  # type: ignore[assignment]
            make, arguments, inner = reduced
            state = (inner, array.flags.writeable, attributes)
            return make, arguments, state, None, None, _set_objects
        memory, begin = self._memory_of(array)
        offset = array.__array_interface__["data"][0] - begin
        how = (array.dtype, array.shape, array.strides, offset, array.flags.writeable)
        return _array, (kind, memory, *how), attributes, None, None, _set_attributes

    def _memory_of(self, array: AnyArray) -> tuple[Any, int]:
        """What an array stands on, and the address of its first byte here."""
        first, last = _extent(array)
        owner = None if self._elsewhere else _read_only_map(array)
        if owner is not None:
            mapped = owner._mmap
            address = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
            if address <= first and last <= address + len(mapped):
                begin = owner.offset - owner.offset % mmap.ALLOCATIONGRANULARITY
                file = _File(str(owner.filename), begin, len(mapped))
                return self._files.setdefault(id(mapped), file), address
        held = _Memory(array, first, last - first, not array.flags.writeable)
        return pickle.PickleBuffer(np.asarray(held).data), first


def unpickle(data: memoryview, memory: Iterable[memoryview]) -> Any:
    """What was pickled; it keeps using the memory handed in."""
    with warnings.catch_warnings():  # memory that must not be written to is none of torch's cares
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return pickle.loads(data, buffers=memory)


# Tensors --------------------------------------------------------------------------------------


def _reduce_tensor(tensor: torch.Tensor) -> Any:
    """How a tensor stands on its storage, with its gradient and attributes; else torch's own way.

    Raises:
        Unmovable: for a tensor with a graph behind it, of which torch would drop the graph.
    """
    if not tensor.is_leaf:
        name = type(tensor.grad_fn).__name__
        raise Unmovable(f"a tensor with a graph behind it ({name})", "detach it")
    kind = type(tensor)
    plain = (
        tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_meta or tensor.is_nested)
        and kind.__reduce_ex__ in (torch.Tensor.__reduce_ex__, nn.Parameter.__reduce_ex__)
        and kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__
        and not any(getattr(tensor, "names", ()))
    )
    reduced, attributes = None, {}
    if plain:
        attributes = dict(tensor.__dict__)
        place = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        bits = (tensor.is_conj(), tensor.is_neg())
        reduced = _tensor, (kind, tensor.untyped_storage(), tensor.dtype, place, bits)
    else:
        reduced = tensor.__reduce_ex__(5)  # type: ignore[no-untyped-call]
    more = attributes or tensor.requires_grad or tensor.grad is not None
    if not more or len(reduced) > 2:
        return reduced
    state = (attributes, tensor.requires_grad, tensor.grad)
    return *reduced, state, None, None, _set_tensor


def _tensor(
    kind: type[torch.Tensor],
    storage: torch.UntypedStorage,
    dtype: torch.dtype,
    place: tuple[Any, Any, Any],
    bits: tuple[bool, bool],
) -> torch.Tensor:
    tensor = torch.empty(0, dtype=dtype, device=storage.device)
    tensor.set_(storage, *place)
    conjugate, negative = bits
    if conjugate:
        tensor = tensor.conj()
    if negative:
        tensor = torch._neg_view(tensor)
    return tensor if kind is torch.Tensor else torch.Tensor._make_subclass(kind, tensor)


def _set_tensor(tensor: torch.Tensor, state: tuple[Any, bool, Any]) -> None:
    attributes, requires_grad, gradient = state
    tensor.__dict__.update(attributes)
    tensor.requires_grad_(requires_grad)
    tensor.grad = gradient


def _bytes_of(storage: torch.UntypedStorage) -> AnyArray:
    whole = torch.empty(0, dtype=torch.uint8, device="cpu")
    return whole.set_(storage).numpy()


def _untyped_storage(memory: Any) -> torch.UntypedStorage:
    view = memoryview(memory)
    if not view.nbytes:
        return torch.UntypedStorage(0, device="cpu")  # type: ignore[no-untyped-call]
    return torch.frombuffer(view, dtype=torch.uint8).untyped_storage()


def _typed_storage(storage: torch.UntypedStorage, dtype: torch.dtype) -> torch.storage.TypedStorage:
    kind: Any = torch.storage.TypedStorage
    return kind(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-any-return]


# Arrays ---------------------------------------------------------------------------------------


class _Memory:
    """Bytes that an array stands on, for `numpy.asarray`; keeps the array alive."""

    def __init__(self, array: AnyArray, address: int, length: int, readonly: bool) -> None:
        self._array = array
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (length,),
            "data": (address, readonly),
        }


def _extent(array: AnyArray) -> tuple[int, int]:
    """The addresses of the first byte of an array and of the one after its last."""
    first = array.__array_interface__["data"][0]
    if array.size == 0:
        return first, first
    reach = [(size - 1) * step for size, step in zip(array.shape, array.strides, strict=True)]
    low, high = sum(min(step, 0) for step in reach), sum(max(step, 0) for step in reach)
    return first + low, first + high + array.itemsize


def _array(  # noqa: PLR0917 - a pickle's arguments are positional
    kind: type[AnyArray],
    memory: Any,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    writeable: bool,
) -> AnyArray:
    plain: AnyArray = np.ndarray(shape, dtype, buffer=memory, offset=offset, strides=strides)
    made = plain if kind is np.ndarray else plain.view(kind)
    if not writeable:
        made.flags.writeable = False
    return made


class _File:
    """A part of a file that is mapped to be read, and is mapped again where it is unpickled."""

    def __init__(self, name: str, begin: int, length: int) -> None:
        self._place = name, begin, length

    def __reduce__(self) -> Any:
        return _map_file, self._place


def _map_file(name: str, begin: int, length: int) -> AnyArray:
    return np.memmap(name, np.uint8, "r", offset=begin, shape=(length,))


def _read_only_map(array: AnyArray) -> Any:
    """The map of a file, opened to be read, that an array is a view of; None if it is none."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if isinstance(getattr(owner, "_mmap", None), mmap.mmap):
            attributes = vars(owner)
            return owner if attributes["mode"] == "r" and attributes["filename"] else None
        owner = owner.base
    return None


def _set_attributes(array: AnyArray, attributes: dict[str, Any]) -> None:
    if attributes:
        vars(array).update(attributes)


def _set_objects(array: AnyArray, state: tuple[Any, bool, dict[str, Any]]) -> None:
    inner, writeable, attributes = state
    array.__setstate__(inner)
    _set_attributes(array, attributes)
    array.flags.writeable = writeable
