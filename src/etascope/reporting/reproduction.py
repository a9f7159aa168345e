"""How to make a study again: the command, the Python, the plan and where it ran.

What stands here is meant to be copied and run, and a study may come from a stranger: only what is
known by name, numbers and quoted text ever stand as code; anything else is told in a comment.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from keyword import iskeyword
from typing import Any, NamedTuple

from etascope.call import DEFAULTS, Call, plain_rungs, plain_seeds, plain_targets
from etascope.optim.registry import OPTIMIZERS
from etascope.plan import (
    DEMO_BUDGET,
    ENGINES,
    HIGH,
    LADDER,
    LOW,
    PRECISIONS,
    SCHEDULES,
    STEPS,
    demo_rungs,
    demo_targets,
)
from etascope.reporting.words import counted
from etascope.search.race import stops_of
from etascope.study import Study
from etascope.words import visible

NAMES: dict[str, Iterable[str]] = {  # what an argument may be called
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "engine": ENGINES,
    "objective": ("loss", "metric"),
}
OPTIONS = ("--data", "--keep-prob")  # of a problem's reference
FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:([^\W\d]\w*\.)*[^\W\d]\w*")  # module:name
INTO = {"sweep": "study", "find": "finding"}


class Reproduction(NamedTuple):
    """`command` is None where the command line cannot express the study."""

    command: str | None
    python: str
    problem: tuple[tuple[str, str], ...]
    plan: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]


def reproduce(study: Study) -> Reproduction:
    """The way to make the study again, and the facts that it depends on."""
    facts = study.problem
    shapes = ", ".join(" × ".join(map(str, shape)) for shape in facts.batch_shapes)
    problem = {
        "name": facts.name,
        "reference": study.reference or "given in Python",
        "trainable parameters": f"{facts.parameters:,}".replace(",", " "),
        "shapes of a batch": shapes,
        "metric": facts.metric,
        "loss of knowing nothing": f"{facts.chance.loss:.4g} ({facts.chance.source})",
        "device": facts.device,
        "fingerprint": facts.fingerprint,
    }
    return Reproduction(
        _command(study),
        _python(study),
        _pairs(problem),
        _pairs(study.plan),
        _pairs(study.environment),
    )


def _pairs(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    def text(value: Any) -> str:
        if value is None:
            return "none"
        return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    return tuple((key.replace("_", " "), text(value)) for key, value in values.items())


def calls(study: Study) -> tuple[Call, ...]:
    """The calls that made the study; of one that kept none, the call that gives its records."""
    if study.calls:
        return study.calls
    rules, plan = study.rules, study.plan
    rungs = [int(rung) for rung in plan.get("rungs", ()) if rung < study.horizon]
    common = {"steps": study.horizon, **{k: v for k, v in plan.items() if k not in ("rungs",)}}
    if rules is None:
        targets: dict[float, int] = {}
        for history in study.trials:
            lr = history.trial.lr
            targets[lr] = max(history.target, targets.get(lr, 0))
        given: dict[str, Any] = {
            "lrs": plain_targets(targets, study.horizon),
            "seeds": plain_seeds(study.seeds),
            "rungs": plain_rungs(rungs, study.horizon),
        }
        return (_less_defaults("sweep", {**common, **given}),)
    given = {
        "lrs": list(rules.ladder),
        "budget": rules.budget,
        "seed": rules.seed,
        "objective": rules.objective,
        "tolerance": rules.tolerance,
        "rungs": plain_rungs(set(rungs) - set(rules.stops), study.horizon),
    }
    return (_less_defaults("find", {**common, **given}),)


def _less_defaults(name: str, arguments: Mapping[str, Any]) -> Call:
    known = DEFAULTS[name]
    return Call(name, {k: v for k, v in arguments.items() if k not in known or v != known[k]})


# The command line ---------------------------------------------------------------------------


def _words(study: Study) -> list[str]:
    """The problem's reference as the words of a command line: its name, then options."""
    try:
        return shlex.split(study.reference or "") or [""]
    except ValueError:  # an odd quote in the name of a file
        return [study.reference or ""]


def _command(study: Study) -> str | None:
    if study.reference is None:
        return None
    made = calls(study)
    out = f"studies/{study.path.resolve().name}"
    lines = [_demo(study, made)]
    if lines == [None]:
        lines = [_line(call, _words(study), study.horizon) for call in made]
    commands = [shlex.join([*line, "--out", out]) for line in lines if line is not None]
    # What cannot be typed is not shown: seen as \x1b, a character is no longer the same.
    whole = len(commands) == len(lines) and all(visible(line) == line for line in commands)
    return "\n".join(commands) if whole else None


def _line(call: Call, words: Sequence[str], horizon: int) -> list[str] | None:
    """The words of a call on the command line; None where it has no word for an argument."""
    name, *options = words
    line = ["etascope", call.name, name, *options]
    for key, value in call.arguments.items():
        if key == "steps" and value == STEPS:
            continue
        text = _joined(value) if key == "lrs" else _typed(key, value)
        if text is None or key not in (*DEFAULTS[call.name], "steps"):
            return None
        line += [f"--{key.replace('_', '-')}", text]
    return line


def _typed(key: str, value: Any) -> str | None:
    """A value as it is typed behind its option; None where that cannot be."""
    if key in NAMES:
        return value if isinstance(value, str) and value in NAMES[key] else None
    return repr(value) if _is_number(value) else None


def _joined(lrs: Any) -> str | None:
    if not isinstance(lrs, list) or not lrs or not all(map(_is_number, lrs)):
        return None
    return ",".join(repr(lr) for lr in lrs)


def _demo(study: Study, made: Sequence[Call]) -> list[str] | None:
    """The words of `etascope demo` where that makes these calls, or was stopped in between."""
    name, *options = _words(study)
    first = dict(made[0].arguments)
    targets = first.pop("lrs", None)
    if name != "mnist-cnn" or made[0].name != "sweep" or not _are_pairs(targets):
        return None
    steps, seeds = study.horizon, first.pop("seeds", 1)
    ladder = [lr for lr, _ in targets if lr not in (LOW, HIGH)]
    stops, _ = stops_of([1.0] * steps)
    rungs = plain_rungs(demo_rungs(steps, dict(targets), stops), steps)
    further = {k: v for k, v in first.items() if k in ("precision", "engine", "workers")}
    same = {"steps": steps, "rungs": rungs, **further}
    find = Call("find", {**same, "budget": DEMO_BUDGET})
    expected = dict(targets) == demo_targets(steps, ladder) and first == same
    if not ladder or not expected or list(made[1:]) not in ([], [find]) or not _is_number(seeds):
        return None
    line = ["etascope", "demo", *options]
    line += [] if steps == STEPS else ["--steps", str(steps)]
    line += [] if seeds == 1 else ["--seeds", str(seeds)]
    line += [] if set(ladder) == set(LADDER) else ["--lrs", str(_joined(ladder))]
    for key, value in further.items():
        text = _typed(key, value)
        if text is None:
            return None
        line += [f"--{key}", text]
    return line


# Python ---------------------------------------------------------------------------------------


def _python(study: Study) -> str:
    lines = ["import etascope as es", "", *_problem(study)]
    out = _quoted("studies/" + study.path.resolve().name)
    for call in calls(study):
        lines += ["", f"{INTO[call.name]} = es.{call.name}(", "    problem,"]
        for key, value in call.arguments.items():
            if key in (*DEFAULTS[call.name], "steps"):
                lines.append(f"    {_argument(key, value)}")
        lines += [f"    out={out},", ")"]
    return "\n".join(lines)


def _problem(study: Study) -> list[str]:
    """The lines that make the problem, or say what it was."""
    if study.reference is None:
        return [f"# problem: the es.Problem called {study.problem.name!r}, given in Python"]
    name, *options = _words(study)
    pairs = list(zip(options[::2], options[1::2], strict=False))
    if len(options) % 2 or any(option not in OPTIONS for option, _ in pairs):
        return [f"# problem: {study.reference!r}, which cannot be shown as code"]
    given = [_keyword(option, value) for option, value in pairs]
    return [f"problem = es.get_problem({', '.join([_quoted(name), *given])})"]


def _argument(key: str, value: Any) -> str:
    """An argument of a call as a line of Python, or as a comment that it cannot be shown."""
    factory = key in ("optimizer", "schedule") and isinstance(value, str)
    if factory and FACTORY.fullmatch(value) and not iskeyword(re.split("[:.]", value)[-1]):
        return f"{key}={re.split('[:.]', value)[-1]},  # {value}"
    if key in NAMES and isinstance(value, str) and value in NAMES[key]:
        return f"{key}={_quoted(value)},"
    if key not in NAMES and (_is_number(value) or _are_numbers(value)):
        return f"{key}={value!r},"
    if key == "lrs" and _are_pairs(value):
        return f"{key}={dict(value)!r},"
    return f"# {key}: cannot be shown as code: {value!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _are_pairs(value: Any) -> bool:
    pairs = isinstance(value, list) and all(_are_numbers(pair) for pair in value)
    return pairs and all(len(pair) == 2 for pair in value)


def _keyword(name: str, value: str) -> str:
    """An option of the command line as a keyword of Python."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    text = repr(number) if math.isfinite(number) else _quoted(value)
    return f"{name.removeprefix('--').replace('-', '_')}={text}"


def _quoted(text: str) -> str:
    """A string of Python, with double quotes where it holds none, every character visible."""
    quoted = repr(text)
    return f'"{quoted[1:-1]}"' if quoted[0] == "'" and '"' not in text else quoted


def size(study: Study) -> str:
    """How large the study is, in words."""
    return f"{counted(len(study.lrs), 'rate')} × {counted(len(study.seeds), 'seed')}"
