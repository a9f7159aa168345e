"""The header of a study: written for a new one, compared with what is asked for an old one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from etascope.call import Call
from etascope.encoding import to_json
from etascope.environment import describe_environment
from etascope.errors import UsageError
from etascope.factories import describe_factories
from etascope.journal import HEADER, Journal, read_header
from etascope.plan import Plan
from etascope.problems.problem import Problem
from etascope.records import ProblemFacts


def open_or_begin(
    journal: Journal, problem: Problem, plan: Plan, facts: ProblemFacts, call: Call
) -> None:
    """Write the header of a new study, or make sure that this is the study that was begun."""
    directory = journal.directory
    described, made = to_json(plan.describe()), to_json(describe_factories(problem, plan))
    if not (directory / HEADER).exists():
        header = {"reference": problem.reference, "problem": asdict(facts), "plan": described}
        header["call"] = to_json(call.to_record())
        journal.write_header({**header, "factories": made, "environment": describe_environment()})
        return
    begun = read_header(directory)
    other = "; name another --out for this one, or repeat the command that began it"
    # What older studies do not name was as it is by default.
    differences = _differences({"skip_unusable": False, **begun["plan"]}, described)
    if differences:
        raise UsageError(f"{directory} holds a study with {differences}{other}")
    known = begun["problem"]
    if known["fingerprint"] != facts.fingerprint:
        raise UsageError(
            f"{directory} holds a study of another problem ({known['name']}): "
            f"the initial weights, the first batches or the first losses differ{other}"
        )
    for factory, ours in made.items():
        if begun.get("factories", {}).get(factory) != ours:
            raise UsageError(
                f"{directory} holds a study whose {factory} factory made something else: "
                f"{begun.get('factories', {}).get(factory)} instead of {ours}{other}"
            )
    judged_by = {
        "metric": facts.metric,
        "higher_is_better": facts.higher_is_better,
        "chance": facts.chance.source,
    }
    differences = _differences({**known, "chance": known["chance"]["source"]}, judged_by)
    if differences:
        raise UsageError(f"{directory} holds a study judged by {differences}{other}")


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    return ", ".join(
        f"{name} {before.get(name)} instead of {value}"
        for name, value in now.items()
        if before.get(name) != value
    )
