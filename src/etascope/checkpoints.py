"""States of trials on the disk: tensors as safetensors, everything else as JSON beside them.

A checkpoint is two files, `<trial>-<step>.safetensors` and `.json`; the JSON is written last and
names the tensors, so a checkpoint without it does not exist. Reading one can run no code.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from etascope.errors import StudyError
from etascope.journal import dumps, write_atomically, writing
from etascope.records import TrialId
from etascope.trial import TrialState

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one study directory."""

    def __init__(self, directory: Path) -> None:
        self._study = directory
        self._folder = directory / FOLDER

    def save(self, trial: TrialId, state: TrialState) -> None:
        """Write the state of a trial; raises StudyError where the disk refuses."""
        tensors: dict[str, torch.Tensor] = {}
        tree = {
            "step": state.step,
            "epoch": state.epoch,
            "position": state.position,
            "model": _pack(dict(state.model), tensors),
            "optimizer": _pack(dict(state.optimizer), tensors),
            "schedule": _pack(state.schedule and dict(state.schedule), tensors),
        }
        with writing(self._study, f"save {trial}"):
            self._folder.mkdir(exist_ok=True)
            described, stored = self._files(trial, state.step)
            write_atomically(stored, save(tensors))
            write_atomically(described, dumps(tree).encode())

    def load(self, trial: TrialId, step: int) -> TrialState:
        """The state of a trial at `step`; raises StudyError where it is missing or damaged."""
        described, stored = self._files(trial, step)
        try:
            tree = json.loads(described.read_bytes())
            tensors = load_file(stored)
            return TrialState(
                step=int(tree["step"]),
                epoch=int(tree["epoch"]),
                position=int(tree["position"]),
                model=_unpack(tree["model"], tensors),
                optimizer=_unpack(tree["optimizer"], tensors),
                schedule=_unpack(tree["schedule"], tensors),
            )
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise StudyError(
                f"the checkpoint of {trial} at step {step} in {self._folder} cannot be read "
                f"({error}); name another --out to train it again"
            ) from error

    def keep_only(self, steps: Mapping[TrialId, int]) -> None:
        """Delete every checkpoint but those of the trials and steps named."""
        if not self._folder.is_dir():
            return
        kept = {path for trial, step in steps.items() for path in self._files(trial, step)}
        with writing(self._study, "delete old checkpoints"):
            # The JSON goes first: tensors without it are no checkpoint.
            for path in sorted(self._folder.iterdir(), key=lambda p: p.suffix != ".json"):
                if path not in kept:
                    path.unlink(missing_ok=True)

    def _files(self, trial: TrialId, step: int) -> tuple[Path, Path]:
        """The JSON and the tensors of a checkpoint."""
        stem = f"lr{trial.lr!r}-seed{trial.seed}-{step}"
        return self._folder / f"{stem}.json", self._folder / f"{stem}.safetensors"


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON values; its tensors go to `tensors` and are named in their place.

    safetensors takes contiguous tensors only, so a dense one is stored with its axes in the order
    of its memory and that order is kept; this gives channels_last tensors back as they were.
    """
    if isinstance(value, torch.Tensor):
        order = sorted(range(value.ndim), key=value.stride().__getitem__, reverse=True)
        if not value.permute(order).is_contiguous():
            order = list(range(value.ndim))
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().permute(order).contiguous().clone()
        return {"tensor": name, "order": order}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, (dict, Counter)):
        kind = "counter" if isinstance(value, Counter) else "dict"
        return {kind: [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    if type(value) in (list, tuple, set):
        return {type(value).__name__: [_pack(item, tensors) for item in value]}
    raise StudyError(
        f"the optimizer or schedule keeps a {type(value).__name__} in its state_dict, which "
        "cannot be saved; keep numbers, strings, lists, dicts and tensors there"
    )


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
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
        pairs = {_unpack(k, tensors): _unpack(v, tensors) for k, v in content}
        return Counter(pairs) if kind == "counter" else pairs
    make = {"list": list, "tuple": tuple, "set": set}[kind]
    return make(_unpack(item, tensors) for item in content)
