"""The options that commands share; each has the name and the meaning it has in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from etascope.plan import ENGINES, PRECISIONS, SCHEDULES

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
SkipUnusable = Annotated[
    bool,
    typer.Option(
        "--skip-unusable",
        help="Go on without batches that are not finite at the untrained weights either.",
    ),
]
