"""Which trials of a sweep are still to be trained."""

import pytest

from etascope.records import Burst, Failure, TrialId, merge
from etascope.search.grid import remaining

TRIAL = TrialId(0.1, 0)


def history(start: int, stop: int, target: int, cause=None):
    failure = cause and Failure(stop, cause, None, "what it said", "what to do")
    losses = (1.0,) * (stop - start)
    bursts = [Burst(TRIAL, 0, start, (1.0,) * start, (), (), (), None, 0.0)] if start else []
    bursts.append(Burst(TRIAL, start, stop, losses, (), (), (), failure, 0.0))
    return merge(TRIAL, target, bursts)


def test_what_has_not_reached_its_target_remains():
    assert remaining({TRIAL: 10}, []) == {TRIAL: 10}
    assert remaining({TRIAL: 10}, [history(2, 4, 10)]) == {TRIAL: 10}
    assert remaining({TRIAL: 4}, [history(2, 4, 4)]) == {}


@pytest.mark.parametrize(
    ("cause", "again"),
    [("non-finite", False), ("data", False), ("exception", True), ("worker", True)],
)
def test_only_failures_that_would_come_again_are_done(cause, again):
    assert remaining({TRIAL: 10}, [history(2, 4, 10, cause)]) == ({TRIAL: 10} if again else {})
