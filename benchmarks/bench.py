"""Times etascope and its peers on the built-in experiment, side by side in one run.

Each peer trains mnist-cnn at the same learning rates, on the same batches, with Adam, for the same
number of steps; what is compared is steps of one model a second over all rates. Start-up is told
apart. Prints one table and writes everything, with the environment, to one JSON file.

Run: `make bench`, or `python benchmarks/bench.py [--rounds 3] [--steps 100] [--peers TEXT ...]`.
"""

import argparse
import json
import math
import os
import time
from datetime import date
from pathlib import Path
from typing import Any

import lineup
from ratios import not_the_same_training, summarize, table
from runner import HERE, Running, matrix_products, measure, shell_startup

from etascope.environment import describe_environment
from etascope.plan import logspace

LOW, HIGH = 1e-5, 1e-2  # no rate in here becomes non-finite, which would distort timing
SHELL = "sweep mnist-cnn --lrs 1e-5:1e-2:8 --steps 1000 --engine processes --workers 2"


def parsed() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="timed steps a rate and round")
    parser.add_argument("--warm-up", type=int, default=4, help="steps before them, not timed")
    parser.add_argument("--rates", type=int, default=8, help="32 of them on an accelerator")
    parser.add_argument("--peers", nargs="*", default=[], help="only those whose name holds this")
    parser.add_argument("--name", default=date.today().isoformat(), help="of the JSON file")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


def compared(
    peers: tuple[lineup.Peer, ...],
    subjects: tuple[str, ...],
    rates: int,
    options: argparse.Namespace,
) -> tuple[dict[str, Any], str]:
    """Measure the peers; return what goes to the file, and the table."""
    chosen = [p for p in peers if not options.peers or any(t in p.name for t in options.peers)]
    experiment = {
        "lrs": logspace(LOW, HIGH, rates),
        "steps": options.steps,
        "warm_up": options.warm_up,
        "batch": 50,
    }
    running, loads = measure(chosen, experiment, options.rounds)
    rounds = {
        name: [r and r["model_steps"] / r["seconds"] for r in peer.repeats]
        for name, peer in running.items()
    }
    summary = summarize(rounds, subjects)
    startup = {name: peer.startup for name, peer in running.items() if peer.startup}
    losses = {name: (peer.repeats or [None])[-1] for name, peer in running.items()}
    remarks = not_the_same_training({name: r["losses"] for name, r in losses.items() if r})
    remarks |= {n: f"not measured: {peer.gone}" for n, peer in running.items() if peer.gone}
    details = {peer.name: described(peer, running[peer.name]) for peer in chosen}
    written = {"experiment": experiment, "load_before_each_round": loads}
    written |= {"summary": summary, "remarks": remarks, "peers": details}
    return written, table(summary, subjects, startup, remarks)


def described(peer: lineup.Peer, running: Running) -> dict[str, Any]:
    """Return all that was measured of a peer, as JSON values."""
    return {
        "script": f"benchmarks/peers/{peer.script}.py",
        "options": peer.options,
        "environment_variables": peer.env,
        "facts": running.facts,
        "startup_seconds": round(running.startup, 3) or None,
        "rounds": running.repeats,
        "not_measured": running.gone,
    }


def main() -> None:
    """Measure, write and print."""
    options = parsed()
    file = options.out / f"{options.name}.json"
    began = time.monotonic()
    environment = {**describe_environment(), "load_before": os.getloadavg()}
    del environment["threads"]  # of a study's trials; every peer tells its own
    cores = environment["cores"]
    result: dict[str, Any] = {"name": options.name, "environment": environment}
    result["cpu"], text = compared(lineup.CPU, lineup.CPU_SUBJECTS, options.rates, options)
    print(f"\n{text}\n")
    if str(environment["accelerator"] or "").startswith("NVIDIA"):
        result["cuda"], text = compared(lineup.CUDA, lineup.CUDA_SUBJECTS, 32, options)
        print(f"{environment['accelerator']}, 32 rates:\n\n{text}\n")
    else:
        result["cuda"] = None
        print("no accelerator was at hand: the stacked engine was not measured\n")
    write(file, result)  # what took long is safe, whatever happens to the rest
    result["shell_startup"] = {"command": f"etascope {SHELL}", "seconds": None}
    startup = shell_startup(SHELL.split(), 3)
    result["shell_startup"]["seconds" if isinstance(startup, list) else "not_measured"] = startup
    print(startup_line(startup))
    result["matrix_product"] = matrix_products(sorted({1, cores}))
    print("\n".join(floor_lines(result["matrix_product"])))
    environment |= {"load_after": os.getloadavg(), "minutes": (time.monotonic() - began) / 60}
    write(file, result)
    print(f"\n{environment['cpu']}, {cores} cores; all of it is in {os.path.relpath(file)}")


def write(file: Path, result: dict[str, Any]) -> None:
    """Write what there is so far."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


def startup_line(startup: list[float] | str) -> str:
    """Return the sentence on the time from the shell to the first step."""
    if isinstance(startup, str):
        return f"from the shell to the first step: not measured: {startup}"
    middle = sorted(startup)[len(startup) // 2]
    return f"from the shell to the first step, 2 workers: {middle:.1f} s (of {len(startup)})"


def floor_lines(products: list[dict[str, Any]]) -> list[str]:
    """Return the sentences on what the arithmetic of a step needs at the least."""
    lines = []
    for product in products:
        for precision in ("float32", "bfloat16"):
            best = product[precision]
            lines.append(
                f"matrix product, {precision}, threads {product['threads']}: "
                f"{math.floor(best['gflops'])} GFLOP/s, "
                f"at which a step takes {best['floor_ms_at_50']:.1f} ms"
            )
    return lines


if __name__ == "__main__":
    main()
