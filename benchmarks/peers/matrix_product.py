"""The best rate of a matrix product here: no training step can be faster than its arithmetic.

The product is square and as large as the cache likes it; the best of many is taken, since this is
a bound. A training step of mnist-cnn needs 82 MFLOP an image: 27.8 forward (1.3 and 20.1 in the
convolutions, 6.4 in fc_layer) and twice that backward, less the gradient of the images.

Run: `python benchmarks/peers/matrix_product.py THREADS`; prints one line of JSON.
"""

import json
import sys
import time

import torch

FLOP_AN_IMAGE = 82.05e6
SIZE, SECONDS = 2048, 3.0


def peak(dtype: torch.dtype) -> float:
    """Return the best rate of a product of two square matrices, in FLOP a second."""
    a, b = (torch.rand(SIZE, SIZE).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * SIZE**3 / best


def main() -> None:
    """Measure with as many threads as asked and print."""
    torch.set_num_threads(int(sys.argv[1]))
    results = {}
    for name in ("float32", "bfloat16"):
        flops = peak(getattr(torch, name))
        results[name] = {"gflops": flops / 1e9, "floor_ms_at_50": 50e3 * FLOP_AN_IMAGE / flops}
    print(json.dumps({"threads": torch.get_num_threads(), **results}))


if __name__ == "__main__":
    main()
