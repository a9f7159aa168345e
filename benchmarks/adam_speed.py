"""Times a step of etascope's Adam against torch's fused Adam on the parameters of mnist-cnn.

Both update the same shapes from the same gradients. A repeat times a block of steps of each, in
an order that alternates, so that a change of the machine's mood falls on both; the ratio is taken
repeat by repeat. Prints one JSON object: medians and quartiles, with the environment.

Run: `python benchmarks/adam_speed.py [--repeats 200] [--steps 10] [--threads N] [--device cpu]`
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import Parameter

from etascope.optim.adam import Adam

SHAPES = [(32, 1, 5, 5), (32,), (64, 32, 5, 5), (64,), (1024, 3136), (1024,), (10, 1024), (10,)]

Make = Callable[[list[Parameter]], torch.optim.Optimizer]
PEERS: dict[str, Make] = {
    "torch_fused": lambda params: torch.optim.Adam(params, lr=1e-3, fused=True),
    "etascope": lambda params: Adam(params, lr=1e-3),
    "etascope_nesterov": lambda params: Adam(params, lr=1e-3, nesterov=True),
}


def prepare(make: Make, device: str) -> torch.optim.Optimizer:
    """Return an optimizer over parameters in channels_last, gradients set, warmed up."""
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in SHAPES:
        values = torch.randn(shape, generator=generator).to(device)
        if len(shape) == 4:
            values = values.to(memory_format=torch.channels_last)
        params.append(Parameter(values))
        params[-1].grad = torch.randn_like(values)
    optimizer = make(params)
    for _ in range(20):
        optimizer.step()
    return optimizer


def block(optimizer: torch.optim.Optimizer, steps: int, device: str) -> float:
    """Return the seconds of one step, as the mean over a block."""
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def quartiles(values: list[float]) -> dict[str, float]:
    """Return median and quartiles, rounded to 5 digits."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {key: float(f"{v:.5g}") for key, v in (("median", middle), ("q1", low), ("q3", high))}


def hardware(device: str) -> str:
    """Return the name of the processor that does the work."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names)} logical cores"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peers = {name: prepare(make, options.device) for name, make in PEERS.items()}
    times: dict[str, list[float]] = {name: [] for name in peers}
    for repeat in range(options.repeats):
        for name in list(peers)[:: 1 if repeat % 2 else -1]:
            times[name].append(block(peers[name], options.steps, options.device))
    base = times["torch_fused"]
    result = {
        "parameters": sum(int(np.prod(shape)) for shape in SHAPES),
        "milliseconds_a_step": {n: quartiles([1e3 * t for t in ts]) for n, ts in times.items()},
        "ratio_to_torch_fused": {
            name: quartiles([t / b for t, b in zip(times[name], base, strict=True)])
            for name in times
            if name != "torch_fused"
        },
        "repeats": options.repeats,
        "steps_a_repeat": options.steps,
        "environment": {
            "hardware": hardware(options.device),
            "threads": options.threads,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.platform(),
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
