"""The command line: every option has the name and the meaning it has in Python."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

import etascope as es
from etascope.errors import EtascopeError, UsageError
from etascope.plan import (
    BUDGET,
    DEMO_BUDGET,
    ENGINES,
    LADDER,
    PRECISIONS,
    SCHEDULES,
    STEPS,
    Plan,
    demo_targets,
    logspace,
    parse_lrs,
    tenths,
)

T = TypeVar("T")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Trains a network at many learning rates and says, with evidence, which one to use.",
)

ProblemArgument = Annotated[
    str, typer.Argument(help="A built-in name, package.module:attribute or file.py:attribute.")
]
StudyArgument = Annotated[Path, typer.Argument(help="A study directory.")]
Out = Annotated[Path | None, typer.Option(help="The study directory.")]
Data = Annotated[
    Path | None, typer.Option(help="A directory with another IDX quadruple of MNIST's naming.")
]
KeepProb = Annotated[
    float | None, typer.Option(help="The share of units that mnist-cnn's dropout keeps.")
]
EngineOption = Annotated[str, typer.Option(help=f"What trains: {', '.join(ENGINES)}.")]
Workers = Annotated[int | None, typer.Option(help="Trials at a time; as many as cores if none.")]
Address = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster, for engine ray; one of this machine if none."),
]
Precision = Annotated[str, typer.Option(help=f"One of {', '.join(PRECISIONS)}.")]
Optimizer = Annotated[str, typer.Option(help="The optimizer's name.")]
Optimizers = Annotated[
    list[str] | None,
    typer.Option("--optimizer", help="The optimizer's name; repeated, all of them are compared."),
]
Schedule = Annotated[str, typer.Option(help=f"One of {', '.join(SCHEDULES)}.")]
Clip = Annotated[float | None, typer.Option(help="The largest gradient norm.")]
Accumulate = Annotated[int, typer.Option(help="Batches a step.")]
WeightDecay = Annotated[float | None, typer.Option(help="The optimizer's own if none.")]
ProbeEvery = Annotated[int, typer.Option(help="Steps between training-batch metrics.")]
RungExamples = Annotated[int, typer.Option(help="Held-out examples used at rungs.")]
Seeds = Annotated[int, typer.Option(help="How many seeds each rate is trained with.")]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"etascope {es.__version__}")
        raise typer.Exit


@app.command()
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

    targets = demo_targets(steps, parse_lrs(lrs) if lrs else LADDER)
    problem = es.get_problem("mnist-cnn", data=data, keep_prob=keep_prob)
    # One study for both: what the one has trained to a stop of the other is not trained again.
    stops, _ = stops_of([1.0] * steps)
    plan: dict[str, Any] = {
        "steps": steps,
        "rungs": {*tenths(steps), *targets.values(), *stops},
        "precision": precision,
        "engine": engine,
        "workers": workers,
        "address": address,
        "out": out,
    }
    study = _told(es.sweep, problem, targets, seeds=seeds, **plan)
    es.look_inside(study)
    _show(study)
    typer.echo("\nAnd what find says, which goes on in the same study:\n")
    _told(es.find, problem, budget=DEMO_BUDGET, **plan)
    study = es.open_study(study.path)
    page = es.report(study, study.path / "report.html")
    _show(study)
    typer.echo(f"\nThe report is {page}")


@app.command()
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
    engine: EngineOption = "auto",
    workers: Workers = None,
    address: Address = None,
    data: Data = None,
    keep_prob: KeepProb = None,
    out: Out = None,
) -> None:
    """Train a problem at several learning rates, paired by seed."""
    rates = parse_lrs(lrs) if lrs else logspace(1e-5, 1, 11)
    studies = _each(
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
        engine=engine,
        workers=workers,
        address=address,
    )
    for study in studies:
        _show(study)
        es.look_inside(study)  # while the problem is at hand, for every report from now on
        typer.echo(f"\nThe study is in {study.path}; etascope report {study.path} draws it")
    _show_compared(studies)
    # Where no trial ended by itself or by its rate, there is nothing to be learned from the study.
    trials = [history for study in studies for history in study.trials]
    if all(h.failure is not None and h.failure.cause != "non-finite" for h in trials):
        raise typer.Exit(1)


@app.command()
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
    findings = _each(
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
            _show(es.open_study(finding.study))
            typer.echo(
                f"\nThe study is in {finding.study}; etascope report {finding.study} draws it"
            )
        _show_compared([es.open_study(finding.study) for finding in findings])
    if all(finding.lr is None for finding in findings):
        raise typer.Exit(1)


@app.command("range-test")
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
    )
    if json:
        from etascope.encoding import to_json

        typer.echo(dumps(to_json(found.to_dict()), indent=1, allow_nan=False))
        return
    from rich.console import Console

    from etascope.reporting.terminal import curve_table

    Console().print(curve_table(found))


@app.command()
def show(
    study: StudyArgument,
    json: Annotated[bool, typer.Option("--json", help="All of it, for a script.")] = False,
) -> None:
    """Print the table of a study, or all of it as JSON."""
    gc.disable()  # records hold no cycles, and looking for some takes longer than reading them
    opened = es.open_study(study)
    gc.freeze()  # not when the process ends, either
    if json:
        # Escapes for all that is not ASCII: a terminal of another encoding spoils no name.
        typer.echo(dumps(opened.to_dict(), indent=1, allow_nan=False))
    else:
        _show(opened)


@app.command()
def report(
    studies: Annotated[list[Path], typer.Argument(help="A study directory; several are compared.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file; report.html in the study if none.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Also write PNG files here.")] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Also write TensorBoard event files here.")
    ] = None,
) -> None:
    """Write the report of a study, or of several optimizers: one HTML file that works offline."""
    if len(studies) > 1:
        if plots is not None or tensorboard is not None:
            raise UsageError("--plots and --tensorboard are of one study; name one")
        typer.echo(es.report(studies, out or Path("comparison.html")))
        return
    opened = es.open_study(studies[0])
    typer.echo(es.report(opened, out or studies[0] / "report.html"))
    if plots is not None:
        from etascope.reporting.plots import save_plots

        for path in save_plots(opened, plots):
            typer.echo(path)
    if tensorboard is not None:
        from etascope.reporting.tensorboard import write_tensorboard

        typer.echo(write_tensorboard(opened, tensorboard))


@app.command()
def graph(
    problem: Annotated[
        str,
        typer.Argument(
            help="As for sweep; or file.py:function that returns (module, example inputs)."
        ),
    ],
    out: Annotated[
        list[Path] | None,
        typer.Option("-o", "--out", help="A .html, .svg, .png or .dot file; repeatable."),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Print it as a tree.")] = False,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Also write it for TensorBoard's graph tab here.")
    ] = None,
    optimizer: Optimizer = str(Plan.optimizer),
    data: Data = None,
    keep_prob: KeepProb = None,
) -> None:
    """Draw the computation graph: the network, its loss, the gradients and the update."""
    from etascope.problems.registry import get_subject
    from etascope.reporting.drawings import check_suffix, write_graph

    for path in out or ():
        check_suffix(path)
    subject = get_subject(problem, data=data, keep_prob=keep_prob)
    pair = subject if isinstance(subject, tuple) else (subject, None)
    found = es.graph(*pair, optimizer=optimizer)
    for path in out or ():
        typer.echo(write_graph(found, path))
    if tensorboard is not None:
        from etascope.reporting.tensorboard_graph import write_tensorboard_graph

        typer.echo(write_tensorboard_graph(found, tensorboard))
    if text or not (out or tensorboard):
        from rich.console import Console

        from etascope.inspection.tree import to_tree

        Console().print(to_tree(found))


@app.command()
def callstack(
    problem: ProblemArgument = "mnist-cnn",
    optimizer: Optimizer = str(Plan.optimizer),
    threads: Annotated[
        int | None, typer.Option(help="How many torch may use; its own if none.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Also write a trace for ui.perfetto.dev here.")
    ] = None,
    native: Annotated[
        bool, typer.Option("--native", help="Also show the C++ frames, which needs gdb.")
    ] = False,
    data: Data = None,
    keep_prob: KeepProb = None,
) -> None:
    """Show what one optimizer step runs: Python frames, operators, bytes, bandwidth."""
    from rich.console import Console

    from etascope.inspection.native import native_stacks
    from etascope.reporting.stacks import native_text, stack_text

    found = es.get_problem(problem, data=data, keep_prob=keep_prob)
    console = Console()
    console.print(stack_text(es.callstack(found, optimizer, threads=threads, trace=trace)))
    if trace is not None:
        typer.echo(f"\nThe trace is {trace}")
    if native:
        stacks = native_stacks(found.reference or problem, optimizer, max(2, threads or 2))
        console.print(native_text(stacks))


@app.command()
def problems() -> None:
    """List the built-in problems and optimizers."""
    from etascope.optim.registry import OPTIMIZERS
    from etascope.problems.registry import PROBLEMS

    for name, problem in PROBLEMS.items():
        flags = " ".join("--" + option.replace("_", "-") for option in problem.options)
        typer.echo(f"{name:17} {problem.summary}{flags and f'; takes {flags}'}")
    typer.echo("\noptimizers")
    for name, spec in OPTIMIZERS.items():
        typer.echo(f"  {name:14} {spec.summary}")


def _told(call: Callable[..., T], *given: Any, **options: Any) -> T:
    """Call `es.sweep` or `es.find` and show how it goes."""
    from etascope.reporting.progress import TerminalProgress

    try:
        with TerminalProgress() as progress:
            return call(*given, progress=progress, **options)
    except KeyboardInterrupt:
        typer.echo("etascope: stopped; the same command goes on from here", err=True)
        raise typer.Exit(130) from None


def _each(
    call: Callable[..., T],
    optimizers: list[str] | None,
    out: Path | None,
    problem: es.Problem,
    *given: Any,
    **options: Any,
) -> list[T]:
    """Call `es.sweep` or `es.find` for each optimizer; several go to folders of their own."""
    from etascope.optim.registry import get_optimizer

    names = list(dict.fromkeys(optimizers or [str(Plan.optimizer)]))
    for name in names:
        get_optimizer(name)  # before any of them trains
    answers = []
    for name in names:
        folder = out / name if out is not None and len(names) > 1 else out
        answers.append(_told(call, problem, *given, optimizer=name, out=folder, **options))
    return answers


def _show_compared(studies: list[es.Study]) -> None:
    """The table of several optimizers, and how to draw it."""
    if len(studies) < 2:
        return
    from rich.console import Console

    from etascope.reporting.compared import compare
    from etascope.reporting.terminal import comparison_table

    typer.echo()
    Console().print(comparison_table(compare(studies)))
    paths = " ".join(str(study.path) for study in studies)
    typer.echo(f"\netascope report {paths} -o FILE.html draws it")


def _show(study: es.Study) -> None:
    from rich.console import Console

    from etascope.reporting.terminal import summary

    Console().print(summary(study))


def main() -> None:
    """Run the command line and exit.

    Exit status 0 done, 1 the study failed or nobody takes the output, 2 wrong use, 130 Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = _run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            raise
        # A stream has no name. What it still holds is thrown away, or Python would try again.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
        if not isinstance(error, BrokenPipeError):
            _tell(f"the output cannot be written ({error.strerror or error})")
    sys.exit(status)


def _run() -> int:
    try:
        app()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except UsageError as error:
        _tell(str(error))
        return 2
    except EtascopeError as error:
        _tell(str(error))
        return 1
    return 0


def _tell(message: str) -> None:
    with contextlib.suppress(OSError):
        print(f"etascope: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
