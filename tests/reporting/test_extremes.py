"""Numbers of any finite size: every judgement and every drawing comes to an end, and is right."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reporting.written_studies import Builder, facts, write_study

from etascope.diagnosis.verdict import judge
from etascope.journal import Journal
from etascope.records import Burst, Chance, Evaluation, History, TrialId, merge
from etascope.reporting import views
from etascope.reporting.compared import compare, comparison_figure
from etascope.reporting.console import Terminal
from etascope.reporting.html import figures, render, render_comparison
from etascope.reporting.plots import plot
from etascope.reporting.terminal import comparison_table, summary
from etascope.search.board import Rules
from etascope.search.finding import replay
from etascope.study import Study, open_study

STEPS = 40
LARGEST = 1.7976931348623157e308
EXTREMES = (0.0, 5e-324, 1e-300, 1e-9, 0.5, 2.3, 1e9, 1e153, 1e200, 1e300, 1e308, LARGEST)
losses = st.one_of(
    st.sampled_from([*EXTREMES, *(-value for value in EXTREMES)]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(0.0, 3.0),
)
rates = st.one_of(
    st.sampled_from([5e-324, 1e-300, 1e-5, 1e-3, 0.1, 1.0, 1e300, 1e308]),
    st.floats(min_value=5e-324, max_value=1e308),
)


def trial_of(lr: float, curve: Sequence[float], held_out: Sequence[float], seed: int = 0) -> Burst:
    """A trial whose training losses repeat `curve`, evaluated at each tenth with `held_out`."""
    loss = np.resize(np.array(curve), STEPS)
    mean = float(sum(map(Fraction, held_out)) / len(held_out))
    found = [
        Evaluation(step, "valid", mean, None, 10 * len(held_out), None, tuple(held_out))
        for step in range(4, STEPS + 1, 4)
    ]
    return Burst(TrialId(lr, seed), 0, STEPS, loss, (), (), tuple(found), None, 1.0)


@st.composite
def trials(draw: st.DrawFn) -> list[Burst]:
    chosen = draw(st.lists(rates, min_size=1, max_size=4, unique=True))
    seeds = draw(st.integers(1, 2))
    made = []
    for lr in chosen:
        for seed in range(seeds):
            curve = draw(st.lists(losses, min_size=1, max_size=6))
            held_out = draw(st.lists(losses, min_size=1, max_size=4))
            made.append(trial_of(lr, curve, held_out, seed))
    return made


def histories(bursts: Sequence[Burst]) -> list[History]:
    return [merge(burst.trial, STEPS, [burst]) for burst in bursts]


def rules(bursts: Sequence[Burst], chance: float) -> Rules:
    lrs = tuple(sorted({burst.trial.lr for burst in bursts}))
    stops = (4, 8, 20, STEPS)
    return Rules(lrs, stops, budget=6.0, chance=chance, reach=(1.0,) * len(stops))


def written(path: Path, bursts: Sequence[Burst], chance: Chance, *, raced: bool) -> Study:
    lrs = dict.fromkeys(sorted({burst.trial.lr for burst in bursts}), STEPS)
    seeds = sorted({burst.trial.seed for burst in bursts})
    problem = facts("line", metric=False, chance=chance)
    study = write_study(
        path, lrs, seeds=seeds, bursts=bursts, problem=problem, reference=None, steps=STEPS
    )
    if raced:
        with Journal(path) as journal:
            journal.aim(asdict(rules(bursts, chance.loss)))
        study = open_study(path)
    return study


@settings(max_examples=80, deadline=None)
@given(trials(), losses)
def test_no_rate_learned_by_an_overflow(bursts: list[Burst], chance: float) -> None:
    """Who learned has a mean held-out loss below that of knowing nothing, in exact arithmetic."""
    known = Chance(chance, "given")
    found = judge(histories(bursts), known, STEPS)
    replay(rules(bursts, chance), histories(bursts), known)
    for burst in bursts:
        parts = burst.evaluations[-1].batch_losses
        if found.trials[burst.trial].name in ("best", "good"):
            assert sum(map(Fraction, parts)) < len(parts) * Fraction(chance)
    if found.best is not None:
        means = {lr: v.evidence.get("valid_loss") for lr, v in found.rates.items()}
        assert math.isfinite(float(means[found.best] or 0.0))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=8, max_size=8), st.integers(-900, 900))
def test_a_unit_of_the_loss_changes_no_verdict(noise: list[float], power: int) -> None:
    """Losses in a unit that is a power of two: the same verdicts, best and band."""

    def judged(unit: float) -> object:
        made = []
        for number, lr in enumerate((0.001, 0.01, 0.1, 1.0)):
            for seed in (0, 1):
                level = (1 + 0.1 * noise[2 * number + seed] + number) * unit
                parts = [level, level * 1.01, level * 0.98]
                made.append(trial_of(lr, [5 * unit, level], parts, seed))
        found = judge(histories(made), Chance(3.0 * unit, "given"), STEPS)
        return {lr: v.name for lr, v in found.rates.items()}, found.best, found.band

    assert judged(1.0) == judged(math.ldexp(1.0, power))


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(trials(), losses, st.booleans())
def test_any_finite_number_is_drawn(
    tmp_path_factory: pytest.TempPathFactory, bursts: list[Burst], chance: float, raced: bool
) -> None:
    study = written(
        tmp_path_factory.mktemp("extreme") / "s", bursts, Chance(chance, "given"), raced=raced
    )
    console = Terminal(file=io.StringIO(), width=120)
    console.print(summary(study))
    assert render(study).startswith("<!doctype html>")
    for figure in figures(study):
        for trace in figure.data:
            assert all(v is None or math.isfinite(v) for v in (*trace["x"], *trace["y"]))
        for axis in ("xaxis", "yaxis"):
            low, high = figure.layout[axis]["range"]
            assert -math.inf < low < high < math.inf
    plot(study)[0].get_figure().draw_without_rendering()  # type: ignore[union-attr]


def test_optimizers_whose_losses_are_huge_are_compared(tmp_path: Path) -> None:
    chance = Chance(1e200, "given")
    studies = [
        written(
            tmp_path / name,
            [trial_of(5e-324, [1e200], [1e199, 1.1e199]), trial_of(1e300, [1e308], [LARGEST] * 3)],
            chance,
            raced=raced,
        )
        for name, raced in (("a", False), ("b", True))
    ]
    found = compare(studies)
    assert found.rows[0].lr == 5e-324
    figure = comparison_figure(found)
    assert all(math.isfinite(v) for trace in figure.data for v in trace["y"])
    Terminal(file=io.StringIO()).print(comparison_table(found))
    assert render_comparison(found)


def test_axes_stay_readable_and_say_what_lies_beyond(build: Builder) -> None:
    """One loss of 1e250 does not press all others into a line, and is shown at the end."""
    bursts = [
        trial_of(0.001, [2.0, 0.5, 0.3], [0.3, 0.31]),
        trial_of(1.0, [2.0, 1e250], [1e250, 2e250]),
    ]
    problem = facts("line", metric=False, chance=Chance(2.3, "given"))
    study = build({0.001: STEPS, 1.0: STEPS}, "wide", bursts=bursts, problem=problem, steps=STEPS)
    for figure in figures(study):
        if figure.name not in ("response-loss", "curves"):
            continue
        low, high = figure.layout["yaxis"]["range"]
        assert -2 < low < math.log10(0.3)
        assert 9 < high < 12
        said = [text for trace in figure.data if trace["mode"] == "text" for text in trace["text"]]
        assert any(text.startswith("↑ up to ") for text in said)
        assert "1.00e250" in figure.alt or "1.50e250" in figure.alt
    words = " ".join(text.get_text() for text in plot(study)[0].texts)
    assert "↑ up to 1.50e250" in words
    assert views.table(study)[1].valid_loss is not None
