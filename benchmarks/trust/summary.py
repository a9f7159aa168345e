"""From the runs and the ground truth to the tables and the picture of docs/trust.md.

    python benchmarks/trust/summary.py [--picture docs/trust.png]

Everything is read from `data/`; nothing is trained.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

DATA = Path(__file__).parent / "data"
OURS = "etascope find, budget 4"
BUDGETS = (2, 4, 8, 12)
TOLERANCE = 0.02  # of find, by default
DRAWS = 10_000  # of the bootstrap over tasks
LEVEL = 0.95


class Truth(NamedTuple):
    """The response of a task.

    Attributes:
        logs: [rate] log10 of the rates.
        losses: [rate] mean held-out losses, a trial that failed counting as chance.
        failed: [rate] shares of seeds that failed.
        chance: the loss of knowing nothing.
        errors: [rate] how far the gap to the best rate may be off, at 95 % one-sided, by Student's
            interval over the seeds, which are the same for every rate.
    """

    logs: np.ndarray
    losses: np.ndarray
    failed: np.ndarray
    chance: float
    errors: np.ndarray

    @property
    def best(self) -> float:
        """The log rate with the lowest mean loss."""
        return float(self.logs[np.argmin(self.losses)])

    def regret(self, lr: float | None) -> float:
        """The loss at a rate minus the lowest, as a share of chance minus lowest."""
        if lr is None or not math.isfinite(lr) or lr <= 0:
            return 1.0
        lowest = self.losses.min()
        loss = np.interp(math.log10(lr), self.logs, self.losses)
        return float(min(1.0, (loss - lowest) / (self.chance - lowest)))

    def surely(self, lr: float) -> float:
        """The regret that a rate has at least, given that the truth is a mean of few seeds."""
        error = np.interp(math.log10(lr), self.logs, self.errors)
        return self.regret(lr) - float(error / (self.chance - self.losses.min()))

    @property
    def edge(self) -> float | None:
        """The log rate above the best at which half of the seeds fail, between two of the grid."""
        for place in range(int(np.argmin(self.losses)), len(self.logs) - 1):
            below, above = self.failed[place], self.failed[place + 1]
            if below < 0.5 <= above:
                step = self.logs[place + 1] - self.logs[place]
                return float(self.logs[place] + step * (0.5 - below) / (above - below))
        return None


def read_truth(path: Path) -> Truth:
    """The ground truth of a task; a trial that failed counts as chance."""
    return truth_of(*read_trials(path))


def read_trials(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """The log rates; the losses and what failed, both [rate, seed]; and the loss of chance."""
    found = json.loads(path.read_text())
    chance = float(found["chance"])
    by_rate: dict[float, list[tuple[float, bool]]] = {}
    for trial in found["trials"]:
        loss = math.inf if trial["loss"] is None else float(trial["loss"])
        lost = trial["failed"] or not loss < chance
        by_rate.setdefault(trial["lr"], []).append((chance if lost else loss, trial["failed"]))
    lrs = sorted(by_rate)
    losses = np.array([[loss for loss, _ in by_rate[lr]] for lr in lrs])
    failed = np.array([[lost for _, lost in by_rate[lr]] for lr in lrs])
    return np.log10(lrs), losses, failed, chance


def truth_of(logs: np.ndarray, table: np.ndarray, failed: np.ndarray, chance: float) -> Truth:
    """The response of some seeds."""
    losses, seeds = table.mean(axis=1), table.shape[1]
    gaps = table - table[np.argmin(losses)]
    spread = gaps.std(axis=1, ddof=1) if seeds > 1 else np.zeros(len(logs))
    errors = stdtrit(max(1, seeds - 1), LEVEL) * spread / math.sqrt(seeds)
    return Truth(logs, losses, failed.mean(axis=1), chance, errors)


def sweep_bands(seeds: int, share: float) -> dict[str, list[bool]]:
    """What the band of a whole sweep of so many seeds is worth by the seeds that it has not.

    The sweep is the ground truth's own, the band where its response is within a share of the
    tolerance. Every choice of seeds on every task counts once.
    """
    hits: dict[str, list[bool]] = {"holds": [], "inside": []}
    for path in sorted((DATA / "truth").glob("*.json")):
        logs, table, failed, chance = read_trials(path)
        every = range(table.shape[1])
        for chosen in itertools.combinations(every, seeds):
            rest = [seed for seed in every if seed not in chosen]
            sweep = truth_of(logs, table[:, chosen], failed[:, chosen], chance)
            truth = truth_of(logs, table[:, rest], failed[:, rest], chance)
            low, high = _around(sweep, share * TOLERANCE)
            hits["holds"].append(low <= truth.best <= high)
            hits["inside"].append(max(truth.regret(10**low), truth.regret(10**high)) <= TOLERANCE)
    return hits


def _around(truth: Truth, allowed: float) -> tuple[float, float]:
    """The log rates up to which the regret stays within what is allowed, on both sides of best."""
    fine = np.linspace(truth.logs[0], truth.logs[-1], 12 * (len(truth.logs) - 1) + 1)
    good = [truth.regret(10**log) <= allowed for log in fine]
    low = high = int(np.argmin(np.abs(fine - truth.best)))
    while low > 0 and good[low - 1]:
        low -= 1
    while high < len(fine) - 1 and good[high + 1]:
        high += 1
    return float(fine[low]) - 1e-9, float(fine[high]) + 1e-9


def sweeps_table() -> str:
    """How well a band can hold at all: those of whole sweeps, by the seeds that they have not."""
    lines = [
        "| a whole sweep with | trainings | holds the best rate | both ends within the tolerance |",
        "| --- | --- | --- | --- |",
    ]
    for seeds in (1, 4):
        for share in (0.15, 0.3, 0.5, 0.7, 1.0):
            hits = sweep_bands(seeds, share)
            lines.append(
                f"| {seeds} of 5 seeds, {100 * share:.0f} % of the tolerance | {25 * seeds} "
                f"| {100 * np.mean(hits['holds']):.0f} % | {100 * np.mean(hits['inside']):.0f} % |"
            )
    return "\n".join(lines)


def read() -> tuple[dict[str, Truth], list[dict[str, Any]]]:
    """The ground truth by task, and all runs."""
    truths = {path.stem: read_truth(path) for path in sorted((DATA / "truth").glob("*.json"))}
    runs = [json.loads(line) for line in (DATA / "results.jsonl").read_text().splitlines()]
    for run in runs:
        run["regret"] = truths[run["task"]].regret(run["lr"])
    return truths, runs


def by_task(runs: Iterable[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> np.ndarray:
    """The mean of a value over the runs of each task: [task]."""
    groups: dict[str, list[float]] = {}
    for run in runs:
        groups.setdefault(run["task"], []).append(value(run))
    return np.array([np.mean(groups[task]) for task in sorted(groups)])


def interval(values: np.ndarray) -> tuple[float, float]:
    """The bootstrap interval of the mean over tasks."""
    draw = np.random.default_rng(0)
    means = values[draw.integers(len(values), size=(DRAWS, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def methods_table(runs: list[dict[str, Any]]) -> str:
    """One line a method, by mean regret."""
    names = dict.fromkeys(run["method"] for run in runs)
    chosen = {name: [run for run in runs if run["method"] == name] for name in names}
    regrets = {name: by_task(chosen[name], lambda run: run["regret"]) for name in names}
    lines = [
        "| method | mean regret | worst task | worst run | no answer | cost | more than ours |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in sorted(names, key=lambda name: regrets[name].mean()):
        own = chosen[name]
        none = sum(run["lr"] is None for run in own)
        cost = np.quantile([run["cost"] for run in own], [0.0, 0.5, 1.0])
        apart = regrets[name] - regrets[OURS]
        low, high = interval(apart)
        more = (
            "–"
            if name == OURS
            else f"{100 * apart.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        )
        worst = max(run["regret"] for run in own)
        lines.append(
            f"| {name} | {100 * regrets[name].mean():.2f} % | {100 * regrets[name].max():.1f} % "
            f"| {100 * worst:.1f} % | {none} of {len(own)} "
            f"| {cost[1]:.1f} ({cost[0]:.1f} to {cost[2]:.1f}) | {'–' if name == OURS else more} |"
        )
    return "\n".join(lines)


def tasks_table(truths: dict[str, Truth], runs: list[dict[str, Any]]) -> str:
    """The regret of every method on each task."""
    names = list(dict.fromkeys(run["method"] for run in runs))
    lines = [f"| task | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for task in sorted(truths):
        cells = []
        for name in names:
            own = [r["regret"] for r in runs if (r["task"], r["method"]) == (task, name)]
            cells.append(f"{100 * np.mean(own):.1f}")
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def share(hits: list[bool]) -> str:
    """A count of hits, and the share that it is."""
    return f"{sum(hits)} of {len(hits)} ({100 * np.mean(hits):.0f} %)" if hits else "none"


def finding_table(truths: dict[str, Truth], runs: list[dict[str, Any]]) -> str:
    """How well band, edge and status of `find` hold, one column a budget."""
    columns = {b: [r for r in runs if r["method"] == f"etascope find, budget {b}"] for b in BUDGETS}
    rows: dict[str, list[str]] = {}
    for own in columns.values():
        for name, cell in finding_column(truths, own).items():
            rows.setdefault(name, []).append(cell)
    head = "| | " + " | ".join(f"budget {budget}" for budget in columns) + " |"
    lines = [head, "| --- |" + " --- |" * len(columns)]
    return "\n".join(lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()])


def finding_column(truths: dict[str, Truth], own: list[dict[str, Any]]) -> dict[str, str]:
    """What one budget came to."""
    held, inside, covered, narrow, regrets = [], [], [], [], []
    nearly, within, lucky = [], [], []
    resolved = [run for run in own if run["finding"]["status"] == "resolved"]
    for run in own:
        truth, found = truths[run["task"]], run["finding"]
        if found["band"] is not None:
            low, high = found["band"]
            held.append(math.log10(low) - 1e-9 <= truth.best <= math.log10(high) + 1e-9)
            inside.append(max(truth.regret(low), truth.regret(high)) <= found["tolerance"])
            # Between two rates of the truth all is linear: an end or one of them is the lowest.
            inner = [10**log for log in truth.logs if math.log10(low) <= log <= math.log10(high)]
            nearly.append(held[-1] or min(truth.surely(lr) for lr in (low, high, *inner)) <= 0)
            within.append(max(truth.surely(low), truth.surely(high)) <= found["tolerance"])
        edge, true = found["edge"], truth.edge
        if true is not None and edge["lr"] is not None:
            low, high = (float(edge[end]) for end in ("low", "high"))
            hit = (low == 0 or math.log10(low) <= true) and true <= math.log10(high)
            covered.append(hit)
            luck = truth.logs[(truth.failed > 0) & (truth.failed < 1)]
            span = (math.log10(low) if low > 0 else -math.inf, math.log10(high))
            lucky.append(hit or bool(((luck >= span[0]) & (luck <= span[1])).any()))
            if low > 0 and math.log10(high / low) <= 0.5:
                narrow.append(hit)
        fresh = run.get("fresh")
        if fresh is not None:
            lowest = truth.losses.min()
            loss = truth.chance if fresh["failed"] else float(fresh["loss"])
            regrets.append((loss - lowest) / (truth.chance - lowest))
    costs = [run["cost"] for run in own]
    broke = sum(run["fresh"]["failed"] for run in own if "fresh" in run)
    return {
        "runs": str(len(own)),
        "cost, mean (most)": f"{np.mean(costs):.2f} ({max(costs):.2f})",
        "resolved": share([run in resolved for run in own]),
        "regret where resolved, mean (worst)": _regret([r["regret"] for r in resolved]),
        "band holds the best rate": share(held),
        "… or one not surely worse": share(nearly),
        "both ends of the band within the tolerance": share(inside),
        "… or not surely beyond it": share(within),
        "edge in its interval": share(covered),
        "… or a rate where some seeds fail and others do not": share(lucky),
        "interval of half a decade or less": f"{len(narrow)} of {len(own)}",
        "edge in such an interval": share(narrow),
        "failed with a fresh seed": f"{broke} of {len(own)}",
        "regret with a fresh seed, mean": _regret(regrets).split(" (")[0],
    }


def _regret(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{100 * np.mean(values):.2f} % ({100 * max(values):.1f} %)"


def picture(truths: dict[str, Truth], runs: list[dict[str, Any]], path: Path) -> None:
    """Every run of every method: its regret, by method, with the mean over tasks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(run["method"] for run in runs))
    means = {
        n: by_task([r for r in runs if r["method"] == n], lambda r: r["regret"]).mean()
        for n in names
    }
    names.sort(key=lambda name: -means[name])
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    ax = figure.subplots()
    draw = np.random.default_rng(0)
    for place, name in enumerate(names):
        ours = name.startswith("etascope")
        values = np.array([max(0.01, 100 * r["regret"]) for r in runs if r["method"] == name])
        colour = "#009e73" if ours else "#6a717b"
        ax.scatter(
            values,
            place + draw.uniform(-0.25, 0.25, len(values)),
            s=9,
            color=colour,
            alpha=0.45,
            lw=0,
        )
        ax.plot([100 * means[name]] * 2, [place - 0.36, place + 0.36], color=colour, lw=2.5)
        ax.annotate(
            f"{100 * means[name]:.1f} %",
            (130, place),
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
    ax.set_xscale("log")
    ax.set_xlim(0.008, 115)
    ticks = [0.01, 0.1, 1, 10, 100]
    ax.set_xticks(ticks, ["≤ 0.01", "0.1", "1", "10", "100"])
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel(
        "regret in % of what there is to learn; a dot is one run, a bar the mean over tasks"
    )
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=0)
    ax.grid(axis="x", color="#ececea")
    ax.set_axisbelow(True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print the tables, and draw the picture if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    truths, runs = read()
    tables = methods_table(runs), tasks_table(truths, runs), finding_table(truths, runs)
    print(*tables, sweeps_table(), sep="\n\n")
    if given.picture is not None:
        picture(truths, runs, given.picture)


if __name__ == "__main__":
    main()
