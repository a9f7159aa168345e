"""How to make a study again: the calls that made it, and nothing else that could run."""

from __future__ import annotations

import ast
import json
import shlex
import shutil
from typing import Any

import pytest
from reporting.written_studies import DEMO, Builder, facts

from etascope.call import Call, plain_rungs, plain_targets
from etascope.plan import DEMO_BUDGET, Plan, demo_rungs, demo_targets
from etascope.reporting import views
from etascope.search.race import stops_of
from etascope.study import Study


def test_reproduce_gives_the_command_where_there_is_one(
    demo: Study, three_seeds: Study, no_metric: Study, build: Builder
) -> None:
    assert views.reproduce(three_seeds).command == (
        "etascope sweep mnist-cnn --steps 500 --lrs 0.0001,0.0003,0.001,0.1,10.0 --seeds 3 "
        "--out studies/three"
    )
    assert views.reproduce(no_metric).command is None
    assert views.reproduce(demo).command is None  # rates that pause take a mapping
    clipped = build({0.1: 1000}, "clipped", clip=1.0, optimizer="sgd")
    assert "--optimizer sgd --clip 1.0" in str(views.reproduce(clipped).command)


def demo_calls(steps: int = 1000, seeds: int = 1, **further: Any) -> tuple[Call, Call]:
    """What `etascope demo` calls."""
    targets = demo_targets(steps)
    plan = Plan(steps=steps)
    rungs = plain_rungs(demo_rungs(steps, targets, stops_of([1.0] * steps)[0]), steps)
    given = {"rungs": rungs, **further}
    return (
        Call.of("sweep", plan, lrs=plain_targets(targets, steps), seeds=seeds, **given),
        Call.of("find", plan, budget=DEMO_BUDGET, **given),
    )


def test_a_study_says_by_which_calls_it_was_made(build: Builder) -> None:
    """Of `find` by `find`, of the demo by the demo, of both by both."""
    find = Call("find", {"steps": 300, "budget": 4.0, "objective": "metric"})
    study = build({0.1: 300}, "raced", steps=300, calls=[find])
    assert views.reproduce(study).command == (
        "etascope find mnist-cnn --steps 300 --budget 4.0 --objective metric --out studies/raced"
    )
    assert "finding = es.find(\n    problem,\n    steps=300,\n" in views.reproduce(study).python
    assert "es.sweep" not in views.reproduce(study).python
    sweep = Call("sweep", {"steps": 300, "lrs": [0.1], "seeds": [4]})
    both = build({0.1: 300}, "both", steps=300, calls=[sweep, find])
    assert views.reproduce(both).command is None  # the command line names no seeds
    python = views.reproduce(both).python
    assert python.index("study = es.sweep(") < python.index("finding = es.find(")
    for name, settings, told in [
        ("plain", {}, "etascope demo"),
        ("short", {"steps": 500, "seeds": 2}, "etascope demo --steps 500 --seeds 2"),
        ("half", {"precision": "bfloat16"}, "etascope demo --precision bfloat16"),
    ]:
        steps, calls = settings.get("steps", 1000), demo_calls(**settings)
        made = build(demo_targets(steps), name, steps=steps, calls=calls)
        assert views.reproduce(made).command == f"{told} --out studies/{name}"
        assert made.calls == calls
    other = build(DEMO, "other", calls=[demo_calls()[0], find])
    assert views.reproduce(other).command is None


@pytest.mark.parametrize(
    "hostile",
    [
        "x)\nimport os; os.system('id')#",
        "builtins:exec\r\nprint(1)",
        "a:b.<locals>.c",
        "mod:lambda",
        "a: b",
        'adam", out="/"); print(1) #',
        "\x1b]0;title\x07:x",
        "\u202emod:name",
        {"__class__": "x"},
        ["__import__('os')"],
        "nan",
        None,
    ],
)
def test_no_code_of_a_stranger_stands_in_the_snippet(build: Builder, hostile: Any) -> None:
    """Whatever a study holds, what is to be copied calls names that were known before."""
    names = ("optimizer", "schedule", "precision", "engine", "clip", "lrs", "seeds", "rungs")
    call = Call("sweep", {"lrs": [0.1], **dict.fromkeys((*names, "evil\n)", "x"), hostile)})
    references = (None, f"p:x --{hostile} 1", f"p:x --data {shlex.quote(str(hostile))}")
    for number, reference in enumerate(references):
        study = build(
            {0.1: 10}, f"s{number}", steps=10, reference=reference, calls=[call],
            problem=facts(str(hostile)),
        )  # fmt: skip
        shown = views.reproduce(study)
        assert shown.command is None
        assert all(line.isprintable() for line in shown.python.split("\n"))
        tree = ast.parse(shown.python)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert {ast.unparse(node.func) for node in calls} <= {"es.sweep", "es.get_problem"}
        made = [node for node in tree.body if isinstance(node, ast.Assign)]
        assert len(tree.body) == 1 + len(made) <= 3


def test_the_command_is_quoted_for_a_shell(build: Builder) -> None:
    """A word that a shell would read otherwise comes out of it as it went in."""
    folder = "a; echo $HOME 'b'"
    for reference in ("my file.py:make", "it's (1).py:problem"):
        study = build({0.1: 1000}, folder, reference=shlex.quote(reference))
        words = shlex.split(str(views.reproduce(study).command))
        assert words[:3] == ["etascope", "sweep", reference]
        assert words[-2:] == ["--out", f"studies/{folder}"]
        assert json.dumps(reference) in views.reproduce(study).python
        shutil.rmtree(study.path)
    options = ["mnist-cnn", "--data", "my data & more"]
    made = build(DEMO, "data", reference=shlex.join(options), calls=demo_calls())
    command = str(views.reproduce(made).command)
    assert shlex.split(command)[:4] == ["etascope", "demo", *options[1:]]
    odd = build({0.1: 1000}, "odd", reference="it's.py:problem")
    assert shlex.split(str(views.reproduce(odd).command))[2] == "it's.py:problem"
    unseen = build({0.1: 1000}, "unseen", reference="'a\x1b[2J.py:problem'")
    assert views.reproduce(unseen).command is None


def test_reproduce_in_python_is_python(demo: Study, no_metric: Study, build: Builder) -> None:
    chosen = build(
        {0.1: 20},
        "chosen",
        steps=20,
        reference="mnist-cnn --keep-prob 0.9 --data 'my data'",
        optimizer="mine:make",
        seeds=(3, 5),
        rungs=[7, 20],
    )
    for study in (demo, no_metric, chosen):
        compile(views.reproduce(study).python, "reproduce", "exec")
    text = views.reproduce(chosen).python
    assert 'es.get_problem("mnist-cnn", keep_prob=0.9, data="my data")' in text
    assert "optimizer=make,  # mine:make" in text
    assert "seeds=[3, 5]" in text
    assert "rungs=[7]" in text
