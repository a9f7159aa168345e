"""What was asked for: a call of `sweep` or `find`, as a study keeps it to say how it was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from etascope.plan import BUDGET, Plan, tenths

TOLERANCE = 0.02  # of `find`: the share of (chance minus best) that counts as equal
_PLAN: dict[str, Any] = {
    f.name: f.default for f in fields(Plan) if f.name not in ("steps", "rungs")
}
_BOTH: dict[str, Any] = {
    **_PLAN,
    "epochs": None,
    "lrs": None,
    "rungs": [],
    "engine": "auto",
    "workers": None,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "sweep": {**_BOTH, "seeds": 1},
    "find": {**_BOTH, "budget": BUDGET, "seed": 0, "objective": "loss", "tolerance": TOLERANCE},
}


@dataclass(frozen=True)
class Call:
    """A call, by the name of its function.

    `arguments` are those that differ from the defaults, as JSON values: `lrs` is a list of rates or
    of pairs (rate, step), `seeds` how many or a list, a factory is "module:name". The problem and
    the directory are not among them: the study knows the one and is in the other.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, plan: Plan, **given: Any) -> Call:
        """The call of `name` with this plan and the other arguments, less what is a default.

        >>> Call.of("find", Plan(steps=100, clip=1.0), budget=4.0, seed=0).arguments
        {'steps': 100, 'clip': 1.0, 'budget': 4.0}
        """
        described = {"steps": plan.steps, **{k: plan.describe()[k] for k in _PLAN}}
        if given.get("epochs") is not None:
            del described["steps"]
        defaults = DEFAULTS[name]
        plain = {key: _plain(value) for key, value in {**described, **given}.items()}
        changed = {k: v for k, v in plain.items() if k not in defaults or v != defaults[k]}
        return cls(name, changed)

    def __post_init__(self) -> None:
        if self.name not in DEFAULTS:
            raise ValueError("the call is of no function that this version knows")

    def to_record(self) -> dict[str, Any]:
        """The call as JSON values."""
        return {"name": self.name, "arguments": dict(self.arguments)}


def _plain(value: Any) -> Any:
    """An integer of numpy or of torch as Python's own; anything else as it is."""
    return int(value) if hasattr(value, "__index__") and not isinstance(value, bool) else value


def plain_targets(targets: Mapping[float, int], horizon: int) -> list[Any]:
    """Rates as a list where all are trained to the horizon, else pairs of rate and step.

    >>> plain_targets({0.1: 50, 0.2: 100}, 100)
    [[0.1, 50], [0.2, 100]]
    """
    if set(targets.values()) == {horizon}:
        return list(targets)
    return [[lr, step] for lr, step in targets.items()]


def plain_seeds(seeds: Sequence[int]) -> int | list[int]:
    """How many seeds where they are counted from 0, else which.

    >>> plain_seeds([0, 1, 2]), plain_seeds([3, 5])
    (3, [3, 5])
    """
    return len(seeds) if list(seeds) == list(range(len(seeds))) else list(seeds)


def plain_rungs(rungs: Iterable[int], horizon: int) -> list[int]:
    """The rungs that were named; empty where they are those that a plan chooses by itself."""
    named = sorted({int(rung) for rung in rungs})
    return [] if {*named, horizon} == set(tenths(horizon)) else named
