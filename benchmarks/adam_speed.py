"""Times a step of etascope's Adam against torch's fused Adam on the parameters of mnist-cnn.

Both update the same shapes from the same gradients. Where an optimizer's tensors happen to lie in
memory is worth several per cent, so there are two of each, allocated in mirrored order. A repeat
times a block of steps of each in a random order, after a step that is not counted (it brings the
tensors into the cache), so that a change of the machine's mood falls on all; the ratio is taken
repeat by repeat, and that of torch's two instances shows what is noise. Prints one JSON object:
medians and quartiles, with the environment.

Run: `python benchmarks/adam_speed.py [--repeats 200] [--steps 10] [--threads N] [--device cpu]`
"""

import argparse
import json
import platform
import random
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
    optimizer.step()
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


def _of(
    name: str, peers: list[tuple[str, torch.optim.Optimizer]], times: list[list[float]]
) -> list[list[float]]:
    """Return the times of both instances of a peer."""
    return [spent for (peer, _), spent in zip(peers, times, strict=True) if peer == name]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peers = [(name, prepare(PEERS[name], options.device)) for name in (*PEERS, *reversed(PEERS))]
    times: list[list[float]] = [[] for _ in peers]
    order = random.Random(0)
    for _ in range(options.repeats):
        for index in order.sample(range(len(peers)), len(peers)):
            times[index].append(block(peers[index][1], options.steps, options.device))
    both = {
        name: [sum(pair) / 2 for pair in zip(*_of(name, peers, times), strict=True)]
        for name in PEERS
    }
    one, other = _of("torch_fused", peers, times)
    result = {
        "parameters": sum(int(np.prod(shape)) for shape in SHAPES),
        "milliseconds_a_step": {n: quartiles([1e3 * t for t in ts]) for n, ts in both.items()},
        "ratio_to_torch_fused": {
            name: quartiles([t / b for t, b in zip(ts, both["torch_fused"], strict=True)])
            for name, ts in both.items()
            if name != "torch_fused"
        },
        "ratio_of_torch_fused_to_itself": quartiles(
            [a / b for a, b in zip(one, other, strict=True)]
        ),
        "repeats": options.repeats,
        "steps_a_repeat": options.steps,
        "environment": {
            "hardware": hardware(options.device),
            "threads": options.threads,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
