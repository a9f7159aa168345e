"""Who is measured: each peer is a script in `peers/`, run in an environment of its own."""

from dataclasses import dataclass, field
from typing import Any

KEEP_MEMORY = {  # glibc then keeps the large blocks of a step instead of faulting them in again
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
}


@dataclass(frozen=True)
class Peer:
    """One row of the table."""

    name: str
    script: str
    python: str  # "project", or the name of an environment of the peers: "tf", "torch"
    options: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


PROCESSES = {"engine": "processes", "workers": 2}
CPU = (
    Peer("TensorFlow, tf.function", "tensorflow_loop", "tf"),
    Peer("Keras, fit on TensorFlow", "keras_fit", "tf"),
    Peer("JAX, jit", "jax_loop", "tf", {"variant": "jit"}),
    Peer("JAX, vmap over the rates", "jax_loop", "tf", {"variant": "vmap"}),
    Peer("PyTorch, as users write it", "torch_loop", "torch", {"variant": "eager"}),
    Peer("PyTorch, tuned", "torch_loop", "torch", {"variant": "tuned"}, KEEP_MEMORY),
    Peer("PyTorch, tuned, compiled", "torch_loop", "torch", {"variant": "compiled"}, KEEP_MEMORY),
    Peer("Ray Tune, PyTorch loop", "ray_tune", "torch"),
    Peer("bare processes, float32", "torch_processes", "torch", {}, KEEP_MEMORY),
    Peer(
        "bare processes, bfloat16",
        "torch_processes",
        "torch",
        {"precision": "bfloat16"},
        KEEP_MEMORY,
    ),
    Peer("etascope, serial", "etascope_sweep", "project", {"engine": "serial"}),
    Peer("etascope, 1 worker", "etascope_sweep", "project", {**PROCESSES, "workers": 1}),
    Peer("etascope, 2 workers", "etascope_sweep", "project", PROCESSES),
    Peer(
        "etascope, 2 workers, bfloat16",
        "etascope_sweep",
        "project",
        {**PROCESSES, "precision": "bfloat16"},
    ),
)
CPU_SUBJECTS = ("etascope, 2 workers", "etascope, 2 workers, bfloat16")

CUDA = (
    Peer("PyTorch, as users write it", "torch_loop", "project", {"device": "cuda"}),
    Peer("etascope, stacked", "etascope_sweep", "project", {"engine": "stacked"}),
)
CUDA_SUBJECTS = ("etascope, stacked",)
