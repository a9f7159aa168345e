"""What can be seen of a process and of a user's objects, before and after a public call.

Run as a script, `python untouched.py CALL DIRECTORY`, it makes the call in a process that has done
nothing else, and says what is no longer as it was. `test_untouched.py` runs it for each call.
"""

from __future__ import annotations

import copy
import gc
import json
import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import etascope as es


class Points(Dataset):
    """A user's dataset."""

    def __init__(self) -> None:
        self.x = torch.linspace(-1, 1, 96)[:, None]
        self.offset = np.full(96, 0.5, np.float32)

    def __len__(self) -> int:
        return 96

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[i], 3 * self.x[i] + self.offset[i] * random.random()


model = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
model[1].eval()
model[0].register_forward_hook(lambda *_: None)
model(torch.ones(4, 1)).sum().backward()
own_optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
own_optimizer.step()
loader = DataLoader(Points(), batch_size=8, shuffle=True)
troubled = {"on": False}


def loss(network: nn.Module, batch: Any) -> torch.Tensor:
    if troubled["on"] and network.training:
        raise RuntimeError("trouble in the user's code")
    return (network(batch[0]) - batch[1]).square().mean()


def metric(network: nn.Module, batch: Any) -> torch.Tensor:
    return ((network(batch[0]) - batch[1]).abs() < 0.3).squeeze(1)


problem = es.Problem(model, loss, loader, loader, metric=metric)


def seen() -> dict[str, Any]:
    """All that a call might have changed."""
    umask = os.umask(0)
    os.umask(umask)
    loggers = [
        logging.getLogger(),
        *map(logging.getLogger, sorted(logging.root.manager.loggerDict)),
    ]
    return {
        "random": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "numpy's errors": np.geterr(),
        "environment": dict(os.environ),
        "warnings": [str(f) for f in warnings.filters],
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "python's threads": sorted(thread.name for thread in threading.enumerate()),
        "determinism": [
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.get_float32_matmul_precision(),
        ],
        "defaults": [str(torch.get_default_dtype()), str(torch.get_default_device())],
        "modes": [
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_cache_enabled(),
            torch.is_anomaly_enabled(),
        ],
        "sys.path": list(sys.path),
        "directory": os.getcwd(),
        "umask": umask,
        "signals": {str(s): str(signal.getsignal(s)) for s in signal.valid_signals()},
        "descriptors": sorted(_descriptors()),
        "children": sorted(_children()),
        "levels": {x.name: [x.level, x.disabled, len(x.handlers)] for x in loggers},
        "logging": logging.root.manager.disable,
        "matplotlib": {k: str(v) for k, v in mpl.rcParams.items() if k != "backend"},
        "backend": str(mpl.rcParams._get("backend")),
        "collector": [gc.isenabled(), gc.get_threshold(), gc.get_debug()],
        "interpreter": [sys.getrecursionlimit(), sys.getswitchinterval(), str(sys.excepthook)],
        "streams": [str(sys.stdout), str(sys.stderr), str(sys.displayhook)],
        "locale": locale.setlocale(locale.LC_ALL),
        "model": {k: v.tolist() for k, v in model.state_dict().items()},
        "gradients": [p.grad.tolist() for p in model.parameters()],
        "modules": [[m.training, len(m._forward_hooks)] for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "optimizer": str(own_optimizer.state_dict()),
        "loader": str(sorted(vars(loader))),
        "dataset": [loader.dataset.x.tolist(), loader.dataset.offset.tolist()],
    }


def _descriptors() -> Iterator[str]:
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            yield os.readlink(link)


def _children() -> set[str]:
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {child for task in tasks for child in task.read_text().split()}


def _levels_of_new(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Loggers that a package has made when it was imported are its own."""
    after["levels"] = {k: v for k, v in after["levels"].items() if k in before["levels"]}


def differences(call: Callable[[], Any]) -> dict[str, str]:
    """What a call has changed, and to what; in a trouble of the user's it must raise."""
    before = copy.deepcopy(seen())
    try:
        call()
        assert not troubled["on"]
    except es.EtascopeError:
        if not troubled["on"]:
            raise
    after = seen()
    _levels_of_new(before, after)
    return {k: str(after[k])[:300] for k, value in before.items() if after[k] != value}


def calls(out: Path) -> dict[str, Callable[[], Any]]:
    """Every public function that does something."""
    few: dict[str, Any] = {"steps": 6, "optimizer": "adam"}
    study = out / "study"
    return {
        "sweep": lambda: es.sweep(problem, [0.1, 1e30], engine="serial", out=out / "a", **few),
        "sweep-processes": lambda: es.sweep(
            problem, [0.1], engine="processes", workers=1, out=out / "b", **few
        ),
        "sweep-stacked": lambda: es.sweep(
            problem, [0.1, 0.2], engine="stacked", out=out / "c", **few
        ),
        "find": lambda: es.find(problem, steps=32, budget=2, engine="serial", out=out / "e"),
        "range_test": lambda: es.range_test(problem, steps=5, seeds=1),
        "graph": lambda: es.graph(problem, out=out / "graph.html"),
        "graph-module": lambda: es.graph(model, torch.ones(4, 1), out=out / "graph.svg"),
        "callstack": lambda: es.callstack(problem),
        "plot": lambda: es.plot(study),
        "report": lambda: es.report(study, out / "a.html"),
        "look_inside": lambda: es.look_inside(
            es.sweep(problem, [0.1], engine="serial", out=out / "f", **few)
        ),
        "open_study": lambda: [es.open_study(study).verdicts, es.open_study(study).to_dict()],
        "get_problem": lambda: es.get_problem("quadratic"),
        "problems": lambda: es.sweep("quadratic", [0.1], engine="serial", out=out / "g", **few),
    }


def main() -> None:
    name, out = sys.argv[1], Path(sys.argv[2])
    call = calls(out)[name]
    for attribute in es.__all__:
        getattr(es, attribute)
    found = {"done": differences(call)}
    if name.split("-")[0] in ("sweep", "find", "range_test", "callstack") or name == "graph":
        troubled["on"] = True
        elsewhere = out / "raising"
        elsewhere.mkdir()
        found["raised"] = differences(calls(elsewhere)[name])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
