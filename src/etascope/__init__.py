"""etascope finds, shows and explains the learning rate of a neural network.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from etascope.coordinator import find, sweep
    from etascope.errors import DataError, EtascopeError, StudyError, UsageError
    from etascope.inspection.callstack import callstack
    from etascope.optim.adam import Adam
    from etascope.plan import Plan, logspace
    from etascope.problems.problem import Problem
    from etascope.problems.registry import get_problem
    from etascope.ranging import range_test
    from etascope.reporting.drawings import graph
    from etascope.reporting.html import report
    from etascope.reporting.inside import look_inside
    from etascope.reporting.plots import plot
    from etascope.search.finding import Finding
    from etascope.study import Study, open_study

_HOMES = {
    "Adam": "optim.adam",
    "callstack": "inspection.callstack",
    "DataError": "errors",
    "EtascopeError": "errors",
    "Plan": "plan",
    "Problem": "problems.problem",
    "Study": "study",
    "StudyError": "errors",
    "UsageError": "errors",
    "Finding": "search.finding",
    "find": "coordinator",
    "get_problem": "problems.registry",
    "graph": "reporting.drawings",
    "logspace": "plan",
    "look_inside": "reporting.inside",
    "open_study": "study",
    "plot": "reporting.plots",
    "range_test": "ranging",
    "report": "reporting.html",
    "sweep": "coordinator",
}

__all__ = [
    "Adam",
    "DataError",
    "EtascopeError",
    "Finding",
    "Plan",
    "Problem",
    "Study",
    "StudyError",
    "UsageError",
    "callstack",
    "find",
    "get_problem",
    "graph",
    "logspace",
    "look_inside",
    "open_study",
    "plot",
    "range_test",
    "report",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'etascope' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"etascope.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
