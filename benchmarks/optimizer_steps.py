"""Prints what every named optimizer's step moves, and how fast, on the built-in network.

The memory traffic is worked out from the operators' tensors; the copy bandwidth is measured in the
same process between as many bytes as the step touches. A minute.

    python benchmarks/optimizer_steps.py [--rounds 5]
"""

import argparse
import statistics

import etascope as es
from etascope.inspection.callstack import CallStack, callstack
from etascope.optim.registry import OPTIMIZERS


def row(name: str, rounds: list[CallStack]) -> str:
    """A line of the table: medians over the rounds."""
    first = rounds[0]
    milliseconds = statistics.median(stack.seconds for stack in rounds) * 1e3
    reached = statistics.median(stack.bytes_per_second for stack in rounds) / 1e9
    copied = statistics.median(stack.copy_bytes_per_second for stack in rounds) / 1e9
    shares = sorted(s.bytes_per_second / s.copy_bytes_per_second for s in rounds)
    share = f"{statistics.median(shares):.0%} [{shares[0]:.0%}, {shares[-1]:.0%}]"
    moving = sum(call.read + call.written > 0 for call in first.traffic)
    return (
        f"| {name} | {moving} | {first.passes:.0f} | {first.bytes / 1e6:.0f} | {milliseconds:.2f} "
        f"| {reached:.0f} | {copied:.0f} | {share} |"
    )


def main() -> None:
    """Measure all of them in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    problem = es.get_problem("mnist-cnn")
    found: dict[str, list[CallStack]] = {name: [] for name in OPTIMIZERS}
    for _ in range(options.rounds):
        for name, stacks in found.items():
            stacks.append(callstack(problem, name, threads=options.threads))
    print("| optimizer | operators | passes | MB | ms | GB/s | copy GB/s | of it |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, stacks in found.items():
        print(row(name, stacks))


if __name__ == "__main__":
    main()
