"""How to make a study again: the command, the Python, the plan and where it ran."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from etascope.plan import HIGH, LADDER, LOW, STEPS, Plan, demo_targets, tenths
from etascope.reporting.words import counted
from etascope.study import Study

# What the command line and `sweep` take when nothing is said; the rungs are told apart.
DEFAULTS = {f.name: f.default for f in fields(Plan) if f.name not in ("steps", "rungs")}


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


def _targets(study: Study) -> dict[float, int]:
    """The step that each rate was asked to reach."""
    targets: dict[float, int] = {}
    for history in study.trials:
        targets[history.trial.lr] = max(history.target, targets.get(history.trial.lr, 0))
    return targets


def _changes(study: Study) -> dict[str, Any]:
    """The settings of the plan that are not the defaults."""
    return {k: study.plan[k] for k, v in DEFAULTS.items() if k in study.plan and study.plan[k] != v}


def _rungs(study: Study) -> list[int]:
    """The rungs, where they are not the tenths of the horizon that `Plan` chooses by itself."""
    given = [int(r) for r in study.plan.get("rungs", ())]
    chosen = set(given) == set(tenths(study.horizon))
    return [] if chosen else [r for r in given if r < study.horizon]


def _words(study: Study) -> list[str]:
    """The problem's reference as the words of a command line: its name, then options."""
    try:
        return shlex.split(study.reference or "") or [""]
    except ValueError:  # an odd quote in the name of a file
        return [study.reference or ""]


def _command(study: Study) -> str | None:
    changes = _changes(study)
    count = len(study.seeds)
    by_name = all(
        isinstance(v, str) and ":" not in v
        for k, v in changes.items()
        if k in ("optimizer", "schedule")
    )
    if study.reference is None or not by_name or study.seeds != tuple(range(count)):
        return None
    targets = _targets(study)
    name, *options = _words(study)
    settings = [] if study.horizon == STEPS else ["--steps", str(study.horizon)]
    settings += [] if count == 1 else ["--seeds", str(count)]
    out = ["--out", f"studies/{study.path.resolve().name}"]
    ladder = [lr for lr in targets if lr not in (LOW, HIGH)]
    demo = name == "mnist-cnn" and ladder and targets == demo_targets(study.horizon, ladder)
    if demo and not changes and not _rungs(study):
        lrs = [] if set(ladder) == set(LADDER) else ["--lrs", _joined(ladder)]
        return shlex.join(["etascope", "demo", *options, *settings, *lrs, *out])
    if set(targets.values()) != {study.horizon} or _rungs(study):
        return None
    flags = [word for k, v in changes.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    words = [name, *options, "--lrs", _joined(targets), *settings, *flags]
    return shlex.join(["etascope", "sweep", *words, *out])


def _joined(lrs: Iterable[float]) -> str:
    return ",".join(f"{lr!r}" for lr in lrs)


def _python(study: Study) -> str:
    lines = ["import etascope as es", ""]
    targets = _targets(study)
    whole = set(targets.values()) == {study.horizon}
    problem = "problem"
    if study.reference is None:
        lines += [f"# problem: the es.Problem called {study.problem.name!r}, given in Python", ""]
    else:
        name, *options = _words(study)
        given = [_keyword(k, v) for k, v in zip(options[::2], options[1::2], strict=False)]
        problem = f"es.get_problem({', '.join([_quoted(name), *given])})"
    lines.append("study = es.sweep(")
    lines.append(f"    {problem},")
    lines.append(f"    {list(targets) if whole else targets!r},")
    lines.append(f"    steps={study.horizon},")
    seeds = list(study.seeds)
    count = seeds == list(range(len(seeds)))
    lines.append(f"    seeds={len(seeds) if count else seeds},")
    for key, value in _changes(study).items():
        if isinstance(value, str) and ":" in value:
            lines.append(f"    {key}={value.rpartition(':')[2]},  # {value}")
        else:
            lines.append(f"    {key}={_quoted(value) if isinstance(value, str) else value},")
    if _rungs(study):
        lines.append(f"    rungs={_rungs(study)},")
    lines += [f"    out={_quoted('studies/' + study.path.resolve().name)},", ")"]
    return "\n".join(lines)


def _keyword(name: str, value: str) -> str:
    """An option of the command line as a keyword of Python."""
    try:
        text = repr(float(value))
    except ValueError:
        text = _quoted(value)
    return f"{name.removeprefix('--').replace('-', '_')}={text}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def size(study: Study) -> str:
    """How large the study is, in words."""
    return f"{counted(len(study.lrs), 'rate')} × {counted(len(study.seeds), 'seed')}"
