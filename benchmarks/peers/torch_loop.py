"""PyTorch, one process, one rate after another.

`eager` is the loop as a user writes it; `tuned` adds channels_last and the fused Adam (the runner
adds the allocator's settings to its environment); `compiled` adds torch.compile to that.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from protocol import (
    Experiment,
    Images,
    Labels,
    Prepared,
    Step,
    UnavailableError,
    one_rate_at_a_time,
    serve,
)
from torch import nn
from torch.nn import functional as F


def network() -> nn.Module:
    """Return the network of mnist-cnn for images [N, 1, 28, 28], freshly initialized."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 1024),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(1024, 10),
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.1, a=-0.2, b=0.2)
        else:
            nn.init.constant_(parameter, 0.1)
    return model


def starter(
    *,
    variant: str = "eager",
    precision: str = "float32",
    device: str = "cpu",
) -> Callable[[float], Step]:
    """Return the function that starts a training at a rate and returns its step."""
    torch.manual_seed(0)
    tuned = variant != "eager"
    model = network().to(device)
    if tuned:
        model = model.to(memory_format=torch.channels_last)
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forward = torch.compile(model) if variant == "compiled" else model

    def start(lr: float) -> Step:
        model.load_state_dict(initial)
        fused = {"fused": True} if tuned else {}
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, **fused)

        def step(images: Images, labels: Labels) -> float:
            inputs = torch.from_numpy(images).view(-1, 1, 28, 28).to(device)
            targets = torch.from_numpy(labels).to(device)
            optimizer.zero_grad()
            with autocast(device, precision):
                loss = F.cross_entropy(forward(inputs), targets)
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    return start


def autocast(device: str, precision: str) -> Any:
    """Return the context of bfloat16, or one that does nothing."""
    half = precision == "bfloat16"
    return torch.autocast(device, torch.bfloat16) if half else nullcontext()


def facts() -> dict[str, Any]:
    """Return what numbers of torch depend on."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
    }


def prepare(experiment: Experiment) -> Prepared:
    """Build the network and make the first step, which compiles it where it is to be compiled."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if experiment.options.get("variant") == "compiled" and compiler is None:
        raise UnavailableError("torch.compile needs a C++ compiler and there is none")
    start = starter(**experiment.options)
    return one_rate_at_a_time(start, experiment)._replace(facts=facts())


if __name__ == "__main__":
    serve(prepare)
