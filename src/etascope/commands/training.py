"""The commands that train: demo, sweep, find and range-test."""

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

import etascope as es
from etascope.arguments import whole
from etascope.commands.options import (
    Accumulate,
    Address,
    Clip,
    Data,
    EngineOption,
    KeepProb,
    Optimizer,
    Optimizers,
    Out,
    Precision,
    ProbeEvery,
    ProblemArgument,
    RungExamples,
    Schedule,
    Seeds,
    SkipUnusable,
    WeightDecay,
    Workers,
)
from etascope.commands.output import draw, each, print_compared, print_place, print_study, say, told
from etascope.plan import (
    BUDGET,
    DEMO_BUDGET,
    LADDER,
    STEPS,
    Plan,
    demo_rungs,
    demo_targets,
    logspace,
    parse_lrs,
)


def demo(
    steps: Annotated[int, typer.Option(help="The horizon, in optimizer steps.")] = STEPS,
    seeds: Seeds = 1,
    lrs: Annotated[
        list[str] | None,
        typer.Option(help="Other rates for the ladder, which pauses at a fifth of the horizon."),
    ] = None,
    data: Data = None,
    keep_prob: KeepProb = None,
    precision: Precision = "float32",
    engine: EngineOption = "auto",
    workers: Workers = None,
    address: Address = None,
    out: Out = Path("studies/demo"),
) -> None:
    """Run the built-in experiment: MNIST, Adam, rates 0.5 and 0.001, what find says, the report."""
    from etascope.search.race import stops_of

    steps = whole("steps", steps, least=1)
    targets = demo_targets(steps, parse_lrs(lrs) if lrs else LADDER)
    problem = es.get_problem("mnist-cnn", data=data, keep_prob=keep_prob)
    stops, _ = stops_of([1.0] * steps)
    plan: dict[str, Any] = {
        "steps": steps,
        "rungs": demo_rungs(steps, targets, stops),
        "precision": precision,
        "engine": engine,
        "workers": workers,
        "address": address,
        "out": out,
    }
    study = told(es.sweep, problem, targets, seeds=seeds, **plan)
    es.look_inside(study)
    print_study(study)
    say()
    say("And what find says, which goes on in the same study:")
    say()
    told(es.find, problem, budget=DEMO_BUDGET, **plan)
    study = es.open_study(study.path)
    page = es.report(study, study.path / "report.html")
    print_study(study)
    say()
    say(f"The report is {page}")


def sweep(
    problem: ProblemArgument,
    lrs: Annotated[
        list[str] | None,
        typer.Option(help="0.5,0.001 or 1e-5:1:11 (log-spaced, ends included); repeatable."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="The horizon, in optimizer steps.")] = None,
    epochs: Annotated[int | None, typer.Option(help="The horizon, in passes over train.")] = None,
    seeds: Seeds = 1,
    optimizers: Optimizers = None,
    schedule: Schedule = str(Plan.schedule),
    clip: Clip = None,
    accumulate: Accumulate = Plan.accumulate,
    weight_decay: WeightDecay = None,
    probe_every: ProbeEvery = Plan.probe_every,
    rung_examples: RungExamples = Plan.rung_examples,
    precision: Precision = "float32",
    skip_unusable: SkipUnusable = False,
    engine: EngineOption = "auto",
    workers: Workers = None,
    address: Address = None,
    data: Data = None,
    keep_prob: KeepProb = None,
    out: Out = None,
) -> None:
    """Train a problem at several learning rates, paired by seed."""
    rates = parse_lrs(lrs) if lrs else logspace(1e-5, 1, 11)
    studies = each(
        es.sweep,
        optimizers,
        out,
        es.get_problem(problem, data=data, keep_prob=keep_prob),
        rates,
        steps=STEPS if steps is None and epochs is None else steps,
        epochs=epochs,
        seeds=seeds,
        schedule=schedule,
        clip=clip,
        accumulate=accumulate,
        weight_decay=weight_decay,
        probe_every=probe_every,
        rung_examples=rung_examples,
        precision=precision,
        skip_unusable=skip_unusable,
        engine=engine,
        workers=workers,
        address=address,
    )
    for study in studies:
        print_study(study)
        es.look_inside(study)  # while the problem is at hand, for every report from now on
        print_place(study.path)
    print_compared(studies)
    # Where no trial ended by itself or by its rate, there is nothing to be learned from the study.
    trials = [history for study in studies for history in study.trials]
    if all(h.failure is not None and h.failure.cause != "non-finite" for h in trials):
        raise typer.Exit(1)


def find(
    problem: ProblemArgument,
    steps: Annotated[int | None, typer.Option(help="The horizon, in optimizer steps.")] = None,
    epochs: Annotated[int | None, typer.Option(help="The horizon, in passes over train.")] = None,
    budget: Annotated[
        float, typer.Option(help="What it may cost at most, in trainings of the full horizon.")
    ] = BUDGET,
    optimizers: Optimizers = None,
    schedule: Schedule = str(Plan.schedule),
    clip: Clip = None,
    accumulate: Accumulate = Plan.accumulate,
    weight_decay: WeightDecay = None,
    lrs: Annotated[
        list[str] | None,
        typer.Option(help="The rates to begin with, 1e-5:10:13 if none; others follow."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The first seed; fresh ones count on from it.")] = 0,
    objective: Annotated[
        str, typer.Option(help="What is to be best on held-out examples: loss or metric.")
    ] = "loss",
    tolerance: Annotated[
        float, typer.Option(help="How much worse still is as good: a share of chance minus best.")
    ] = 0.02,
    probe_every: ProbeEvery = Plan.probe_every,
    rung_examples: RungExamples = Plan.rung_examples,
    precision: Precision = "float32",
    skip_unusable: SkipUnusable = False,
    engine: EngineOption = "auto",
    workers: Workers = None,
    address: Address = None,
    data: Data = None,
    keep_prob: KeepProb = None,
    json: Annotated[bool, typer.Option("--json", help="The finding, for a script.")] = False,
    out: Out = None,
) -> None:
    """Find the learning rate for a horizon, by a race of real trainings."""
    given = {"lrs": parse_lrs(lrs)} if lrs else {}
    findings = each(
        es.find,
        optimizers,
        out,
        es.get_problem(problem, data=data, keep_prob=keep_prob),
        steps=STEPS if steps is None and epochs is None else steps,
        epochs=epochs,
        budget=budget,
        schedule=schedule,
        clip=clip,
        accumulate=accumulate,
        weight_decay=weight_decay,
        seed=seed,
        objective=objective,
        tolerance=tolerance,
        probe_every=probe_every,
        rung_examples=rung_examples,
        precision=precision,
        skip_unusable=skip_unusable,
        engine=engine,
        workers=workers,
        address=address,
        **given,
    )
    if json:
        from etascope.encoding import to_json

        plain = [to_json(finding.to_dict()) for finding in findings]
        typer.echo(dumps(plain if optimizers and len(optimizers) > 1 else plain[0], indent=1))
    else:
        for finding in findings:
            print_study(es.open_study(finding.study))
            print_place(finding.study)
        print_compared([es.open_study(finding.study) for finding in findings])
    if all(finding.lr is None for finding in findings):
        raise typer.Exit(1)


def range_test(
    problem: ProblemArgument,
    optimizer: Optimizer = str(Plan.optimizer),
    low: Annotated[float, typer.Option(help="The first rate.")] = 1e-7,
    high: Annotated[float, typer.Option(help="The last rate.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Steps from the first to the last.")] = 100,
    seeds: Seeds = 3,
    clip: Clip = None,
    accumulate: Accumulate = Plan.accumulate,
    weight_decay: WeightDecay = None,
    precision: Precision = "float32",
    skip_unusable: SkipUnusable = False,
    data: Data = None,
    keep_prob: KeepProb = None,
    json: Annotated[bool, typer.Option("--json", help="Curves too, for a script.")] = False,
) -> None:
    """Run the classic range test: the rate rises while a short training runs."""
    found = es.range_test(
        es.get_problem(problem, data=data, keep_prob=keep_prob),
        optimizer=optimizer,
        low=low,
        high=high,
        steps=steps,
        seeds=seeds,
        clip=clip,
        accumulate=accumulate,
        weight_decay=weight_decay,
        precision=precision,
        skip_unusable=skip_unusable,
    )
    if json:
        from etascope.encoding import to_json

        typer.echo(dumps(to_json(found.to_dict()), indent=1, allow_nan=False))
        return
    from etascope.reporting.terminal import curve_table

    draw(curve_table(found))
