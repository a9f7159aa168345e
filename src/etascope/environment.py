"""Where a study runs: versions and hardware, kept in study.json so that numbers can be placed."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


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
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "accelerator": _accelerator_name(str(accelerator)) if usable else None,
        "threads": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _accelerator_name(kind: str) -> str:
    import torch

    return torch.cuda.get_device_name() if kind.startswith("cuda") else kind
