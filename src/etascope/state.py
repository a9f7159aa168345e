"""The state of a trial between two stretches of training, and its form outside a process.

A state travels and is stored as one safetensors file: its tensors, and in the metadata the JSON
of all that is no tensor. Reading one can run no code.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from etascope.errors import StudyError

Packed = bytes | memoryview  # a state as the bytes of a safetensors file

KEY = "state"  # of the metadata


@dataclass(frozen=True)
class TrialState:
    """All that a trial needs to go on: where it is, and its tensors.

    `model` holds parameters and buffers by name, `extra` what modules keep beside them (their
    `get_extra_state`), `optimizer` and `schedule` are state_dicts.
    """

    step: int
    epoch: int
    position: int
    model: Mapping[str, torch.Tensor]
    extra: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any] | None


def pack(state: TrialState) -> bytes:
    """The state as the bytes of a safetensors file.

    Raises:
        StudyError: if the optimizer, the schedule or a module keeps what is neither a tensor nor
            a plain value.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = {
        "step": state.step,
        "epoch": state.epoch,
        "position": state.position,
        "model": _flatten(dict(state.model), tensors),
        "extra": _flatten(dict(state.extra), tensors),
        "optimizer": _flatten(dict(state.optimizer), tensors),
        "schedule": _flatten(state.schedule and dict(state.schedule), tensors),
    }
    seen: set[int] = set()
    for name, tensor in tensors.items():  # safetensors refuses two that share memory
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return save(tensors, metadata={KEY: json.dumps(tree)})


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
        )
    except (KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"this is no state of a trial ({error})") from error


def _flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON values; its tensors go to `tensors` and are named in their place.

    safetensors takes contiguous tensors only, so a dense one is stored with its axes in the order
    of its memory and that order is kept; this gives channels_last tensors back as they were.
    """
    if isinstance(value, torch.Tensor):
        order = sorted(range(value.ndim), key=value.stride().__getitem__, reverse=True)
        if not value.permute(order).is_contiguous():
            order = list(range(value.ndim))
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().permute(order).contiguous()
        return {"tensor": name, "order": order}
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
        f"the optimizer, the schedule or a module keeps a {type(value).__name__} in its state, "
        "which cannot be saved; keep numbers, strings, lists, dicts and tensors there"
    )


def _restore(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        order = value["order"]
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return tensors[value["tensor"]].permute(inverse)
    ((kind, content),) = value.items()
    if kind == "float":
        return float.fromhex(content)
    if kind in ("dict", "counter"):
        pairs = {_restore(k, tensors): _restore(v, tensors) for k, v in content}
        return Counter(pairs) if kind == "counter" else pairs
    make = {"list": list, "tuple": tuple, "set": set}[kind]
    return make(_restore(item, tensors) for item in content)
