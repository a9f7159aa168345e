"""Damage the files of small studies in every way that comes to mind, and open, show and go on.

A sweep and a race of a tiny network are trained once. Each case copies one of them, changes one of
its files (journal, header, numbers, checkpoints, inspection), and uses it: it is opened, shown on
a terminal and as JSON, and opened again with salvage; now and then its report is drawn or its
training goes on. A case fails where anything but an EtascopeError of at most 400 characters (its
path not counted) is raised, where a number is shown that the intact study does not show, or where
it takes longer than 20 seconds. A record whose checksum was made anew on purpose may show other
numbers; then only errors and time are looked at. Prints one JSON object; exit status 1 if a case
failed.

    python benchmarks/fuzz_studies.py --cases 100000 --seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import nn

import etascope as es
from etascope.checkpoints import Checkpoints
from etascope.encoding import STEPS, seal, unseal
from etascope.errors import EtascopeError
from etascope.journal import FOLDER, HEADER, JOURNAL
from etascope.reporting.html import render
from etascope.reporting.inside import FILE, inside
from etascope.reporting.terminal import summary
from etascope.study import Study

SECONDS, CHARACTERS, MEMORY = 20, 400, 3 << 30
STEPS_SWEEP, STEPS_RACE = 20, 40


def problem() -> es.Problem:
    """Three blobs and a network of two small layers."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (120,), generator=generator)
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    points = centres[labels] + 0.4 * torch.randn(120, 2, generator=generator)
    return es.Problem(
        model=lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)),
        loss=lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1]),
        metric=lambda m, batch: m(batch[0]).argmax(-1) == batch[1],
        train=(points[:80], labels[:80]),
        valid=(points[80:], labels[80:]),
        batch_size=20,
        name="blobs",
    )


def sweep(out: Path, *, whole: bool) -> Study:
    """A sweep with a rate that fails; unless it is whole, one rate stands at half of it."""
    lrs = {0.05: STEPS_SWEEP, 0.3: STEPS_SWEEP if whole else STEPS_SWEEP // 2, 1e30: STEPS_SWEEP}
    return es.sweep(
        problem(), lrs, steps=STEPS_SWEEP, rungs=(5, 10), optimizer="sgd", engine="serial", out=out
    )


def race(out: Path, *, whole: bool) -> Study:
    """A race; a larger budget goes on with it."""
    es.find(
        problem(),
        steps=STEPS_RACE,
        lrs=(0.01, 0.1, 1.0),
        budget=6 if whole else 3,
        optimizer="sgd",
        engine="serial",
        out=out,
    )
    return es.open_study(out)


Train = Callable[..., Study]


class Base(NamedTuple):
    """An intact study: its directory, how it goes on, and what may be shown of it."""

    path: Path
    train: Train
    shown: frozenset[str]
    """What was shown after each line of its journal."""
    final: str
    losses: dict[tuple[float, int], list[Any]]


def document(study: Study) -> str:
    """All that is shown of a study, times and machine aside."""
    found = study.to_dict()
    found["study"].pop("seconds")
    found.pop("environment")
    if found["finding"] is not None:
        found["finding"].pop("study")
    for trial in found["trials"]:
        trial.pop("seconds")
    return json.dumps(found, sort_keys=True)


def make_base(path: Path, train: Train) -> Base:
    """Train a study and note what is shown of it."""
    study = train(path, whole=False)
    if study.source is not None:
        es.look_inside(study)
    else:
        shutil.copy(path.parent / "sweep" / FILE, path)  # of another study
    copy, shown = path.parent / f"{path.name} copy", set()
    lines = (path / JOURNAL).read_bytes().splitlines(keepends=True)
    shutil.copytree(path, copy)
    for count in range(1, len(lines) + 1):
        (copy / JOURNAL).write_bytes(b"".join(lines[:count]))
        shown.add(document(es.open_study(copy)))
    final = document(train(copy, whole=True))
    shutil.rmtree(copy)
    losses = {(h.trial.lr, h.trial.seed): h.loss.tolist() for h in study.trials}
    return Base(path, train, frozenset(shown), final, losses)


# Changes --------------------------------------------------------------------------------------


class Change(NamedTuple):
    """What was done to a file, and whether its checksums were made anew."""

    name: str
    resealed: bool = False


def of_bytes(path: Path, draw: random.Random) -> Change:
    """Flip a bit, or delete, insert, overwrite or cut some bytes."""
    data = bytearray(path.read_bytes())
    how = draw.choice(["flip", "flip", "flip", "delete", "insert", "overwrite", "cut", "repeat"])
    at = draw.randrange(len(data)) if data else 0
    some = draw.choice([1, 1, 2, 8, 100])
    if how == "flip" and data:
        data[at] ^= 1 << draw.randrange(8)
    elif how == "delete":
        del data[at : at + some]
    elif how == "insert":
        data[at:at] = draw.randbytes(some)
    elif how == "overwrite":
        data[at : at + some] = bytes(min(some, len(data) - at))
    elif how == "cut":
        del data[at:]
    else:
        data[at:at] = data[at : at + some]
    path.write_bytes(data)
    return Change(how)


def of_lines(path: Path, draw: random.Random) -> Change:
    """Delete, repeat or swap whole lines, or bring one from elsewhere."""
    lines = path.read_bytes().splitlines(keepends=True)
    how = draw.choice(["delete line", "repeat line", "swap lines", "foreign line"])
    if not lines:
        return Change(how)
    first, second = draw.randrange(len(lines)), draw.randrange(len(lines))
    if how == "delete line":
        del lines[first]
    elif how == "repeat line":
        lines.insert(second, lines[first])
    elif how == "swap lines":
        lines[first], lines[second] = lines[second], lines[first]
    else:
        lines.insert(first, draw.choice([b"{}\n", b"\n", b'{"kind": "request", "trials": []}\n']))
    path.write_bytes(b"".join(lines))
    return Change(how)


VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda draw: draw.choice([None, True, False, [], {}, "", "nan", "inf", "-inf", "a"]),
    lambda draw: draw.choice([0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]),
    lambda draw: draw.choice([0.0, -0.0, 1e-320, 1e308, -1e308, 0.5, 1e19, 1e154]),
    lambda draw: draw.choice(["x" * 10**5, "\x1b[2J\u202e", "[/red]", "<script>", "\0"]),
    lambda draw: draw.randrange(-10, 1000),
    lambda draw: draw.uniform(-10, 10),
    lambda draw: [draw.randrange(100) for _ in range(draw.randrange(50))],
    lambda draw: nested(draw.choice([3, 33, 200])),
    lambda draw: {"a": nested(40)},
)


def nested(depth: int) -> Any:
    """Arrays inside each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: what holds it, and its key there."""
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(item, (dict, list)):
            yield from parts(item)


def of_values(values: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Change, delete or add a value somewhere in an object."""
    holder, key = draw.choice(list(parts(values)))
    how = draw.random()
    if how < 0.15:
        del holder[key]
    elif how < 0.25 and isinstance(holder, dict):
        holder[draw.choice(["extra", "kind", "x" * 10**4])] = draw.choice(VALUES)(draw)
    elif how < 0.35 and isinstance(holder, list):
        holder.extend([holder[key]] * draw.choice([1, 1000]))
    elif how < 0.6 and type(holder[key]) in (int, float):
        holder[key] = draw.choice([-1, 2, 0.5, 1e9, 1e-9]) * holder[key]
    else:
        holder[key] = draw.choice(VALUES)(draw)
    return values


def of_json(path: Path, draw: random.Random) -> Change:
    """Change a value in a document or a line, and make its checksum anew."""
    lines = path.read_bytes().splitlines() if path.name == JOURNAL else [path.read_bytes()]
    if not lines:
        return Change("values", True)
    at = draw.randrange(len(lines))
    with contextlib.suppress(ValueError):  # JSON numbers beyond 64 bits cannot be read at all
        values = unseal(lines[at])
        lines[at] = seal(of_values(values, draw))
    path.write_bytes(b"\n".join(lines) + (b"\n" if path.name == JOURNAL else b""))
    return Change("values", True)


def of_place(path: Path, draw: random.Random) -> Change:
    """Put something else in the place of a file."""
    how = draw.choice(["missing", "empty", "link", "zeros", "pipe", "folder", "socket", "sparse"])
    path.unlink()
    if how == "empty":
        path.touch()
    elif how == "link":
        path.symlink_to(path.with_name("elsewhere"))
    elif how == "zeros":
        path.symlink_to("/dev/zero")
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path)[-100:] if len(str(path)) < 100 else path.name)
    elif how == "sparse":
        with path.open("wb") as file:
            file.truncate(draw.choice([1 << 20, 1 << 27, 1 << 40]))
    return Change(how)


def of_others(path: Path, draw: random.Random, bases: list[Base]) -> Change:
    """Put another file of this or another study in its place."""
    files = [f for base in bases for f in base.path.rglob("*") if f.is_file()]
    same = [f for f in files if f.suffix == path.suffix]
    shutil.copy(draw.choice(same if draw.random() < 0.8 else files), path)
    return Change("another file")


def change(study: Path, draw: random.Random, bases: list[Base]) -> tuple[str, Change]:
    """Change one file of a study; returns which, and how."""
    checkpoints = sorted((study / FOLDER).glob("*.safetensors"))
    files = [JOURNAL] * 5 + [HEADER, HEADER, STEPS, FILE, *([FOLDER] * 2)]
    name = draw.choice(files)
    path = draw.choice(checkpoints) if name == FOLDER else study / name
    how = draw.random()
    if how < 0.45:
        return name, of_bytes(path, draw)
    if how < 0.55 and name == JOURNAL:
        return name, of_lines(path, draw)
    if how < 0.9 and name in (JOURNAL, HEADER, FILE):
        return name, of_json(path, draw)
    if how < 0.95:
        return name, of_place(path, draw)
    return name, of_others(path, draw, bases)


# Use ------------------------------------------------------------------------------------------


class CaseError(Exception):
    """Something was shown that must not be."""


def use(
    study: Path, base: Base, done: Change, draw: random.Random, shares: tuple[float, float]
) -> str:
    """Use a changed study; returns what came of it, and raises what must not happen."""
    outcome, opened = "refused", None
    with told(study):
        opened = es.open_study(study)
        outcome = "shown"
        if not done.resealed and document(opened) not in base.shown:
            raise CaseError("other numbers are shown")
        shown(opened)
        inside(opened)
        if draw.random() < shares[0]:
            render(opened)
    if opened is None:
        with told(study):
            salvage(study, base, done)
    else:
        load_checkpoints(study, opened, base, done)
    if draw.random() < shares[1]:
        with told(study):
            went_on = base.train(study, whole=True)
            if not done.resealed and document(went_on) != base.final:
                raise CaseError("it went on with other numbers")
            outcome = "went on"
    return outcome


def salvage(study: Path, base: Base, done: Change) -> None:
    """Show what is whole of a damaged study: no other numbers than were written."""
    rest = es.open_study(study, salvage=True)
    if not rest.damage:
        raise CaseError("what is refused is whole")
    for history in rest.trials:
        known = base.losses.get((history.trial.lr, history.trial.seed), [])
        same = repr(history.loss.tolist()) == repr(known[: len(history.loss)])
        if not done.resealed and not same:
            raise CaseError("salvage shows other losses")
    shown(rest)


def load_checkpoints(study: Path, opened: Study, base: Base, done: Change) -> None:
    """Load what training would go on from: nothing but what was saved."""
    for history in opened.trials:
        step = history.resume_step
        if not step or (mark := opened.mark(history.trial, step)) is None:
            continue
        with told(study):
            state = Checkpoints(study).load(history.trial, step, mark)
            saved = [p.read_bytes() for p in (base.path / FOLDER).glob(f"*-{step}.safetensors")]
            if not done.resealed and bytes(state) not in saved:
                raise CaseError("a changed checkpoint would be trained on")


def shown(study: Study) -> None:
    """Show it on a terminal that nobody reads."""
    Console(file=io.StringIO(), width=100).print(summary(study))


@contextlib.contextmanager
def told(study: Path) -> Iterator[None]:
    """Let errors pass that say what is wrong in one short sentence."""
    try:
        yield
    except EtascopeError as error:
        text = str(error).replace(str(study), "")
        if len(text) > CHARACTERS or "\n" in text:
            raise CaseError(f"a message of {len(text)} characters: {text[:100]}") from error


def hang(*_: object) -> None:
    raise CaseError(f"it took longer than {SECONDS} s")


def fuzz(
    cases: int, seed: int, shares: tuple[float, float], folder: Path, only: int | None = None
) -> dict[str, Any]:
    """Run the cases and return the counts of what came of them, and those that failed."""
    bases = [make_base(folder / "sweep", sweep), make_base(folder / "race", race)]
    outcomes: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    before = signal.signal(signal.SIGALRM, hang)
    began = time.perf_counter()
    try:
        for case in range(cases) if only is None else [only]:
            draw = random.Random(f"{seed} {case}")
            base = draw.choice(bases)
            study = shutil.copytree(base.path, folder / "case")
            (folder / "case" / "elsewhere").write_text("another file")
            name, done = change(study, draw, bases)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                outcome = use(study, base, done, draw, shares)
            except Exception as error:  # noqa: BLE001 (whatever is raised here is a failure)
                outcome = "failed"
                where = traceback.format_exc().strip().splitlines()
                inside_package = [line.strip() for line in where if "/etascope/" in line]
                failure = {"case": case, "file": name, "change": done.name}
                failure |= {"error": repr(error)[:200], "at": "; ".join(inside_package)[-200:]}
                failures.append(failure)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            outcomes[f"{name}: {done.name}: {outcome}"] += 1
            shutil.rmtree(study)
    finally:
        signal.signal(signal.SIGALRM, before)
    totals: Counter[str] = Counter()
    for text, count in outcomes.items():
        totals[text.rpartition(": ")[2]] += count
    first = {f["at"] or f["error"]: f for f in reversed(failures)}  # one for each place
    return {
        "cases": cases,
        "seed": seed,
        "totals": dict(totals),
        "outcomes": dict(sorted(outcomes.items())),
        "failures": len(failures),
        "first_failures": list(first.values())[-40:],
        "seconds": round(time.perf_counter() - began),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "etascope": es.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }


def main() -> None:
    """Fuzz and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reports", type=float, default=0.02, help="share of cases to draw")
    parser.add_argument("--runs", type=float, default=0.02, help="share of cases to go on with")
    parser.add_argument("--only", type=int, help="one case, to look at")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(asked.cases, asked.seed, (asked.reports, asked.runs), Path(folder), asked.only)
    print(json.dumps(found, indent=1))
    sys.exit(bool(found["failures"]))


if __name__ == "__main__":
    main()
