"""The header of a study: written for a new one, compared with what is asked for an old one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from etascope.call import Call
from etascope.encoding import to_json
from etascope.environment import describe_environment
from etascope.errors import UsageError
from etascope.factories import describe_factories
from etascope.journal import Journal
from etascope.plan import Plan
from etascope.problems.problem import Problem
from etascope.records import ProblemFacts

LONGEST = 80  # characters of a value in a message


def open_or_begin(
    journal: Journal, problem: Problem, plan: Plan, facts: ProblemFacts, call: Call
) -> None:
    """Write the header of a new study, or make sure that this is the study that was begun."""
    directory, begun = journal.directory, journal.header
    described, made = to_json(plan.describe()), to_json(describe_factories(problem, plan))
    if begun is None:
        header = {"reference": problem.reference, "problem": asdict(facts), "plan": described}
        header["call"] = to_json(call.to_record())
        journal.write_header({**header, "factories": made, "environment": describe_environment()})
        return
    other = "; name another --out for this one, or repeat the command that began it"
    # What older studies do not name was as it is by default.
    differences = _differences({"skip_unusable": False, **begun.plan}, described)
    if differences:
        raise UsageError(f"{directory} holds a study with {differences}{other}")
    known = begun.problem
    if known.fingerprint != facts.fingerprint:
        raise UsageError(
            f"{directory} holds a study of another problem ({_short(known.name)}): "
            f"the initial weights, the first batches or the first losses differ{other}"
        )
    for factory, ours in made.items():
        if begun.factories.get(factory) != ours:
            raise UsageError(
                f"{directory} holds a study whose {factory} factory made something else: "
                f"{_short(begun.factories.get(factory))} instead of {_short(ours)}{other}"
            )
    judged_by = [
        {"metric": f.metric, "higher_is_better": f.higher_is_better, "chance": f.chance.source}
        for f in (known, facts)
    ]
    differences = _differences(*judged_by)
    if differences:
        raise UsageError(f"{directory} holds a study judged by {differences}{other}")


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    return ", ".join(
        f"{name} {_short(before.get(name))} instead of {_short(value)}"
        for name, value in now.items()
        if before.get(name) != value
    )


def _short(value: object) -> str:
    """A value as a message shows it, also where it is long."""
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
