"""The inside of a study's training for its report: kept in its directory, read from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from etascope.caller import left_as_it_was
from etascope.encoding import loads, seal, unseal
from etascope.errors import StudyError, UsageError
from etascope.files import read_regular, write_atomically
from etascope.inspection.callstack import CallStack
from etascope.inspection.frames import Frame
from etascope.inspection.look import Look, look, look_from_json, look_to_json
from etascope.inspection.update import Spread, Update
from etascope.journal import StudyName
from etascope.reporting import views
from etascope.reporting.words import number
from etascope.study import Study

FILE = "inspection.json"
LEAST = 0.002  # of the step's time; a frame that took less is not drawn
SYMBOLS = {"exp_avg": "m", "exp_avg_sq": "v", "momentum_buffer": "b", "square_avg": "v", "sum": "s"}


class Bar(NamedTuple):
    """A rectangle of the flame picture: shares of its width, and the row it stands in."""

    left: float
    width: float
    row: int
    label: str
    title: str
    operator: bool


class Row(NamedTuple):
    """A line of the table of an update: a parameter, and the median and spread of each symbol."""

    name: str
    shape: str
    cells: tuple[tuple[str, str], ...]


class Table(NamedTuple):
    """The numbers in one update."""

    update: Update
    symbols: tuple[str, ...]
    rows: tuple[Row, ...]


@left_as_it_was()
def look_inside(study: Study) -> Path:
    """Capture the inside of a study's training, on copies, for every report of it from now on.

    The graph of a training step, one step of the optimizer, and the numbers in an update at the
    high and the low rate that the report compares; a few training steps in all.

    Args:
        study: as `sweep` returned it: one from the disk, such as that of a finding, does not
            know its model.

    Returns:
        The file in the study's directory.

    Raises:
        UsageError: if it is no study of `sweep` as that returned it.
        StudyError: if the file cannot be written.
    """
    if not isinstance(study, Study):
        kind = type(study).__name__
        raise UsageError(f"study is a {kind}, which knows no model; pass what sweep returned")
    if study.source is None:
        raise UsageError("a study from the disk knows no model; pass the one that sweep returned")
    problem, plan = study.source
    pair = views.high_and_low(study)
    found = look(problem, plan, [curve.lr for curve in pair if curve is not None])
    path = study.path / FILE
    try:
        write_atomically(path, seal({"study": study.name.name, **look_to_json(found)}))
    except OSError as error:
        raise StudyError(f"cannot write {path}: {error.strerror or error}; make room") from error
    return path


def inside(study: Study) -> Look | None:
    """What `look_inside` captured, or None; of a file that is not as it was written, only that."""
    path = study.path / FILE
    try:
        return _read(path, study.name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        return Look(None, None, (), (f"{FILE} cannot be read: {why}",))


def _read(path: Path, name: StudyName) -> Look:
    data = read_regular(path)
    values = loads(data)
    if name.sealed or "crc32" in values:
        values = unseal(data)
        if values.pop("study", None) != name.name:
            raise ValueError("it belongs to another study")
    return look_from_json(values)


def flame(stack: CallStack) -> list[Bar]:
    """The step as a flame picture: a row a call, as wide as it took."""
    whole = stack.root.seconds

    def bars(frame: Frame, left: float, row: int) -> Iterator[Bar]:
        width = frame.seconds / whole
        if width < LEAST:
            return
        moved = f", {frame.bytes / 1e6:.2f} MB moved" if frame.traffic else ""
        title = f"{frame.name} {frame.where}".strip() + f": {frame.seconds * 1e3:.3f} ms{moved}"
        yield Bar(left, width, row, frame.name, title, bool(frame.traffic))
        for child in frame.children:
            yield from bars(child, left, row + 1)
            left += child.seconds / whole

    return list(bars(stack.root, 0.0, 0))


def tables(found: Look) -> list[Table]:
    """The numbers in each update that was measured."""
    made = []
    for update in found.updates:
        kept = list(dict.fromkeys(name for p in update.parameters for name in p.state))
        symbols = ("|θ|", "|g|", *(f"|{SYMBOLS.get(name, name)}|" for name in kept), "|Δθ|")
        rows = [
            Row(
                p.name,
                " × ".join(map(str, p.shape)),
                tuple(
                    _cell(spread)
                    for spread in (p.weight, p.gradient, *(p.state.get(n) for n in kept), p.change)
                ),
            )
            for p in update.parameters
        ]
        made.append(Table(update, symbols, tuple(rows)))
    return made


def _cell(spread: Spread | None) -> tuple[str, str]:
    """The median, and the range that nine tenths lie in."""
    if spread is None:
        return "–", ""
    if spread.low is None or spread.middle is None or spread.high is None:
        return "not finite", ""
    return number(spread.middle), f"{number(spread.low)} to {number(spread.high)}"
