"""The command line: its commands, its exit status, and how it tells what went wrong."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

import etascope as es
from etascope.commands import looking, training
from etascope.errors import EtascopeError, UsageError
from etascope.words import visible

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Trains a network at many learning rates and says, with evidence, which one to use.",
)
COMMANDS: tuple[Callable[..., None], ...] = (
    training.demo,
    training.sweep,
    training.find,
    training.range_test,
    looking.show,
    looking.report,
    looking.graph,
    looking.callstack,
    looking.problems,
)
for command in COMMANDS:
    app.command()(command)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"etascope {es.__version__}")
        raise typer.Exit


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
        status = app(standalone_mode=False)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except UsageError as error:
        _tell(str(error))
        return 2
    except EtascopeError as error:
        _tell(str(error))
        return 1
    except typer.Abort:
        return 1
    except Exception as error:
        # The parser's errors share no public class between the versions of typer.
        if not hasattr(error, "format_message"):
            raise
        return _misused(error)
    return status if isinstance(status, int) else 0


def _misused(error: Any) -> int:
    """Tell what the parser of the command line refused, and return the status of wrong use."""
    message, context = str(error.format_message()).rstrip("."), getattr(error, "ctx", None)
    if message:  # there is none where the help was printed in its place
        see = "" if context is None else f"; see {context.command_path} --help"
        _tell(f"{message}{see}")
    return int(error.exit_code)


def _tell(message: str) -> None:
    with contextlib.suppress(OSError):
        print(visible(f"etascope: {message}"), file=sys.stderr)


if __name__ == "__main__":
    main()
