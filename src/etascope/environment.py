"""Where a study runs: versions and hardware, kept in study.json so that numbers can be placed."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

NUMERIC = ("etascope", "torch", "numpy", "cpu", "accelerator")
"""What the bits of a training depend on. Of two releases of Python or of a kernel they do not."""


def describe_environment() -> dict[str, Any]:
    """Versions, processor, cores, accelerator and the time, as JSON values."""
    import numpy as np
    import torch

    import etascope

    accelerator = torch.accelerator.current_accelerator()
    usable = accelerator is not None and torch.accelerator.is_available()
    return {
        "etascope": etascope.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": usable_cores(),
        "accelerator": _accelerator_name(str(accelerator)) if usable else None,
        "threads": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of two environments may change the bits of a training; empty where nothing does.

    >>> differences({"torch": "2.9.0", "cores": 2}, {"torch": "2.10.0", "cores": 8})
    'torch 2.9.0, then 2.10.0'
    """
    told = []
    for name in NUMERIC:
        if before.get(name) != now.get(name):
            told.append(f"{name} {_short(before.get(name))}, then {_short(now.get(name))}")
    return "; ".join(told)


def _short(value: object) -> str:
    text = "none" if value is None else " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"


def usable_cores() -> int:
    """The physical cores that this process may use: affinity and a container's quota count."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    # Two threads of one core share its arithmetic units: they count once.
    siblings = {
        _read(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") or n: n
        for n in allowed
    }
    quota, _, period = (_read("/sys/fs/cgroup/cpu.max") or "max 1").partition(" ")
    limit = len(allowed) if quota == "max" else int(quota) // int(period)
    return max(1, min(len(siblings), limit))


def size(count: int) -> str:
    """A number of bytes as people write it.

    >>> size(39_600_248)
    '39.6 MB'
    """
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g} {units[power]}"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _cpu() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _accelerator_name(kind: str) -> str:
    import torch

    return torch.cuda.get_device_name() if kind.startswith("cuda") else kind
