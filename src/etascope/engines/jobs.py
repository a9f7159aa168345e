"""A piece of work in the hands of workers that may die.

Where a worker dies, its trial goes on in another one from its last rung; a trial whose worker died
three times without a rung in between has failed.
"""

from __future__ import annotations

from dataclasses import dataclass

from etascope.engines.base import Done, Work
from etascope.records import Burst, Failure
from etascope.state import Packed

ATTEMPTS = 3  # deaths of a worker without a rung in between that a trial is allowed
REMEDY = "give it more memory (a smaller batch, fewer workers), or mend the code that crashes"


@dataclass
class Job:
    """A piece of work with the last state it reached, and how often its worker died since."""

    work: Work
    deaths: int = 0
    finished: bool = False

    def reached(self, burst: Burst, state: Packed | None) -> None:
        """Note a burst and the state after it: from here on a death costs the work since."""
        target = self.work.target
        self.work = Work(burst.trial, target, burst.stop, state)
        self.deaths = 0
        self.finished = burst.failure is not None or burst.stop >= target

    def died(self, how: str) -> Done | None:
        """Count a death of its worker; the failure of the trial once there were too many."""
        self.deaths += 1
        if self.deaths < ATTEMPTS:
            return None
        trial, step = self.work.trial, self.work.step
        message = f"its worker process died {ATTEMPTS} times after step {step} ({how})"
        failure = Failure(step, "worker", None, message, REMEDY)
        return Done(Burst(trial, step, step, (), (), (), (), failure, 0.0), None)
