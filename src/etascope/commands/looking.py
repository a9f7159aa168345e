"""The commands that show what is there: show, report, graph, callstack and problems."""

import gc
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

import etascope as es
from etascope.commands.options import (
    Data,
    KeepProb,
    Optimizer,
    ProblemArgument,
    StudyArgument,
)
from etascope.commands.output import draw, print_study, say
from etascope.errors import UsageError
from etascope.plan import Plan


def show(
    study: StudyArgument,
    json: Annotated[bool, typer.Option("--json", help="All of it, for a script.")] = False,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Of damaged files, what is whole.")
    ] = False,
) -> None:
    """Print the table of a study, or all of it as JSON."""
    gc.disable()  # records hold no cycles, and looking for some takes longer than reading them
    opened = es.open_study(study, salvage=salvage)
    gc.freeze()  # not when the process ends, either
    if json:
        # Escapes for all that is not ASCII: a terminal of another encoding spoils no name.
        typer.echo(dumps(opened.to_dict(), indent=1, allow_nan=False))
    else:
        print_study(opened)


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
        say(es.report(studies, out or Path("comparison.html")))
        return
    opened = es.open_study(studies[0])
    say(es.report(opened, out or studies[0] / "report.html"))
    if plots is not None:
        from etascope.reporting.plots import save_plots

        for path in save_plots(opened, plots):
            say(path)
    if tensorboard is not None:
        from etascope.reporting.tensorboard import write_tensorboard

        say(write_tensorboard(opened, tensorboard))


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
        say(write_graph(found, path))
    if tensorboard is not None:
        from etascope.reporting.tensorboard_graph import write_tensorboard_graph

        say(write_tensorboard_graph(found, tensorboard))
    if text or not (out or tensorboard):
        from etascope.inspection.tree import to_tree

        draw(to_tree(found))


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
    from etascope.inspection.native import native_stacks
    from etascope.reporting.stacks import native_text, stack_text

    found = es.get_problem(problem, data=data, keep_prob=keep_prob)
    draw(stack_text(es.callstack(found, optimizer, threads=threads, trace=trace)))
    if trace is not None:
        say()
        say(f"The trace is {trace}")
    if native:
        stacks = native_stacks(found.reference or problem, optimizer, max(2, threads or 2))
        draw(native_text(stacks))


def problems() -> None:
    """List the built-in problems and optimizers."""
    from etascope.optim.registry import OPTIMIZERS
    from etascope.problems.registry import PROBLEMS

    for name, problem in PROBLEMS.items():
        flags = " ".join("--" + option.replace("_", "-") for option in problem.options)
        say(f"{name:17} {problem.summary}{flags and f'; takes {flags}'}")
    say()
    say("optimizers")
    for name, spec in OPTIMIZERS.items():
        say(f"  {name:14} {spec.summary}")
