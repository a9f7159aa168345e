"""The state of a trial between two stretches of training, and its form outside a process.

A state travels and is stored as one safetensors file: its tensors, and in the metadata the JSON
of all that is no tensor. Reading one can run no code.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from etascope.errors import StudyError
from etascope.tensors import COMPRESSED, dense_parts

Packed = bytes | memoryview  # a state as the bytes of a safetensors file

KEY = "state"  # of the metadata
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
# What safetensors has no name for: complex numbers are stored as pairs, the rest as bytes.
PAIRS = {torch.complex128: torch.float64, torch.complex32: torch.float16}
BYTES = {
    getattr(torch, name)
    for name in ("float8_e5m2fnuz", "float8_e4m3fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2")
    if hasattr(torch, name)
}
LAYOUTS = {"coo": torch.sparse_coo} | {
    str(layout).rpartition("_")[2]: layout for layout in COMPRESSED
}


# What reading a tree of values raises that `_flatten` did not make.
MALFORMED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class TrialState:
    """All that a trial needs to go on: where it is, and its tensors.

    `model` holds parameters and buffers by name, `extra` what modules keep beside them (their
    `get_extra_state`), `optimizer` and `schedule` are state_dicts, and `attributes` are the plain
    attributes of modules and optimizer that have changed (see `etascope.attributes`). `skipped`
    counts the draws of a step's batches that could not be used.
    """

    step: int
    epoch: int
    position: int
    model: Mapping[str, torch.Tensor]
    extra: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any] | None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    skipped: int = 0


def serialize(state: TrialState) -> list[memoryview]:
    """The state as the parts of a safetensors file, one after the other.

    All but the first are the memory of the tensors themselves, so that whoever writes them copies
    a state once; they hold until the trial goes on.

    Raises:
        StudyError: if the optimizer, the schedule or a module keeps what is neither a tensor of
            numbers nor a plain value.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = {
        "step": state.step,
        "epoch": state.epoch,
        "position": state.position,
        "skipped": state.skipped,
        "model": _flatten(dict(state.model), tensors),
        "extra": _flatten(dict(state.extra), tensors),
        "optimizer": _flatten(dict(state.optimizer), tensors),
        "schedule": _flatten(state.schedule and dict(state.schedule), tensors),
        "attributes": _flatten(dict(state.attributes), tensors),
    }
    header: dict[str, Any] = {"__metadata__": {KEY: json.dumps(tree)}}
    parts, end = [], 0
    # Wide numbers first, which puts each tensor where its numbers are aligned.
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].itemsize):
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        parts.append(memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [memoryview(len(text).to_bytes(8, "little") + text), *parts]


def pack(state: TrialState) -> bytes:
    """The state as the bytes of a safetensors file; raises as `serialize` does."""
    return b"".join(serialize(state))


def unpack(packed: Packed) -> TrialState:
    """The state in the bytes that `pack` made; raises ValueError where they are damaged."""
    data = bytes(packed)
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        tree = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
        return TrialState(
            step=int(tree["step"]),
            epoch=int(tree["epoch"]),
            position=int(tree["position"]),
            model=_restore(tree["model"], tensors),
            extra=_restore(tree["extra"], tensors),
            optimizer=_restore(tree["optimizer"], tensors),
            schedule=_restore(tree["schedule"], tensors),
            attributes=_restore(tree.get("attributes", {"dict": []}), tensors),
            skipped=int(tree.get("skipped", 0)),
        )
    except MALFORMED as error:
        text = " ".join(str(error).split())[:100]
        raise ValueError(f"this is no state of a trial ({text})") from error


def _flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON values; its tensors go to `tensors` and are named in their place."""
    if isinstance(value, torch.Tensor) and _can_be_saved(value):
        return _flatten_tensor(value, tensors)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, (dict, Counter)):
        kind = "counter" if isinstance(value, Counter) else "dict"
        return {kind: [[_flatten(k, tensors), _flatten(v, tensors)] for k, v in value.items()]}
    if type(value) in (list, tuple, set):
        return {type(value).__name__: [_flatten(item, tensors) for item in value]}
    raise StudyError(
        f"the optimizer, the schedule or a module keeps a {_kind_of(value)} in its "
        "state, which cannot be saved; keep numbers, strings, lists, dicts and plain tensors there"
    )


def _can_be_saved(tensor: torch.Tensor) -> bool:
    """Whether a tensor is nothing but numbers, which can be read back as they were."""
    wrapped = hasattr(tensor, "__tensor_flatten__")  # a subclass around other tensors
    if wrapped or tensor.is_nested or tensor.is_meta:
        return False
    known = tensor.layout is torch.strided or tensor.layout in LAYOUTS.values()
    return known and (tensor.dtype in DTYPES or tensor.dtype in PAIRS or tensor.dtype in BYTES)


def _kind_of(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    words = [
        "nested" if value.is_nested else "meta" if value.is_meta else "",
        "" if value.layout is torch.strided else str(value.layout),
        str(value.dtype),
        "tensor" if type(value) is torch.Tensor else type(value).__name__,
    ]
    return " ".join(word.removeprefix("torch.") for word in words if word)


def _flatten_tensor(tensor: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A tensor as its place in `tensors`, a sparse one as its layout and its dense parts.

    safetensors takes contiguous tensors only, so a dense one is stored with its axes in the order
    of its memory and that order is kept; this gives channels_last tensors back as they were.
    """
    if tensor.layout is not torch.strided:
        layout = next(name for name, known in LAYOUTS.items() if known is tensor.layout)
        coalesced = tensor.layout is torch.sparse_coo and tensor.is_coalesced()
        parts = [_flatten_tensor(part, tensors) for part in dense_parts(tensor)]
        return {"sparse": [layout, list(tensor.shape), coalesced, parts]}
    value = tensor.detach().cpu().resolve_conj().resolve_neg()
    order = sorted(range(value.ndim), key=value.stride().__getitem__, reverse=True)
    if not value.permute(order).is_contiguous():
        order = list(range(value.ndim))
    name = str(len(tensors))
    place: dict[str, Any] = {"tensor": name, "order": order}
    value = value.permute(order).contiguous()
    if value.dtype not in DTYPES:
        place["dtype"] = str(value.dtype).removeprefix("torch.")
        pairs = PAIRS.get(value.dtype)
        value = value.view(torch.uint8) if pairs is None else torch.view_as_real(value)
    tensors[name] = value
    return place


def _restore(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        order, tensor = value["order"], tensors[value["tensor"]]
        if "dtype" in value:
            dtype = getattr(torch, value["dtype"])
            tensor = torch.view_as_complex(tensor) if dtype in PAIRS else tensor.view(dtype)
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return tensor.permute(inverse)
    ((kind, content),) = value.items()
    if kind == "sparse":
        return _restore_sparse(content, tensors)
    if kind == "float":
        return float.fromhex(content)
    if kind in ("dict", "counter"):
        pairs = {_restore(k, tensors): _restore(v, tensors) for k, v in content}
        return Counter(pairs) if kind == "counter" else pairs
    make = {"list": list, "tuple": tuple, "set": set}[kind]
    return make(_restore(item, tensors) for item in content)


def _restore_sparse(content: list[Any], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A sparse tensor of its parts, which are checked: torch reads past the end of wrong ones."""
    name, shape, coalesced, places = content
    parts = [_restore(place, tensors) for place in places]
    if LAYOUTS[name] is torch.sparse_coo:
        indices, values = parts
        return torch.sparse_coo_tensor(
            indices, values, shape, is_coalesced=coalesced or None, check_invariants=True
        )
    starts, indices, values = parts
    return torch.sparse_compressed_tensor(
        starts, indices, values, shape, layout=LAYOUTS[name], check_invariants=True
    )
