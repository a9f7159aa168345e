"""The ground truth of the trust benchmark: every judged task at 25 rates with 5 seeds, in full.

    python benchmarks/trust/truth.py [--work DIR] [TASK ...]

Trains what is not trained yet (studies in DIR, by default studies/trust/truth; it may be cut off
and started again) and writes what the benchmark reads to `data/truth/TASK.json`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from tasks import JUDGED, TRUTH_SEEDS, Task

import etascope as es
from etascope.diagnosis.chance import failed
from etascope.reporting.progress import TerminalProgress

DATA = Path(__file__).parent / "data" / "truth"


def train(task: Task, work: Path) -> es.Study:
    """The study of a task, trained as far as it is not trained yet."""
    with TerminalProgress() as progress:
        return es.sweep(
            es.get_problem(task.problem),
            task.lrs,
            seeds=TRUTH_SEEDS,
            rungs=[task.steps],
            engine="processes",
            out=work / task.name,
            progress=progress,
            **task.plan,
        )


def digest(task: Task, study: es.Study) -> dict[str, object]:
    """The final held-out loss of each trial, None where it ended early, and whether it failed."""
    trials = [
        {
            "lr": history.trial.lr,
            "seed": history.trial.seed,
            "loss": end.loss if (end := history.evaluation("valid")) else None,
            "failed": failed(history, study.problem.chance),
            "seconds": round(history.seconds, 3),
        }
        for history in study.trials
    ]
    return {
        "task": asdict(task),
        "chance": study.problem.chance.loss,
        "fingerprint": study.problem.fingerprint,
        "environment": study.environment,
        "trials": trials,
    }


def main() -> None:
    """Train and write the tasks named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", choices=[[], *JUDGED])
    parser.add_argument("--work", type=Path, default=Path("studies/trust/truth"))
    given = parser.parse_args()
    DATA.mkdir(parents=True, exist_ok=True)
    for name in given.tasks or JUDGED:
        found = digest(JUDGED[name], train(JUDGED[name], given.work))
        (DATA / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
