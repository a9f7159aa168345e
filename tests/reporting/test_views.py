"""The views: what is said and shown of a study, as plain numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reporting.written_studies import CHANCE, Builder, burst, evaluation, facts, plan

from etascope.optim.reference import effective_lr
from etascope.records import Burst, Chance, Failure, TrialId
from etascope.reporting import elsewhere, views
from etascope.reporting.axes import Reach, apart
from etascope.reporting.ends import ends
from etascope.reporting.lines import pair_figures
from etascope.reporting.palette import MARKS
from etascope.reporting.thinning import thin
from etascope.study import Study


def test_answer_names_rate_edge_and_limits(demo: Study) -> None:
    said = views.answer(demo)
    text = " ".join(said.sentences)
    assert said.headline == "Of the rates trained to the end, use 0.001."
    assert "From 0.1 upward training fails; at 0.01, the next rate below, it does not." in text
    assert "At 0.5: held-out accuracy 0.113" in text
    assert any("as of step 200 of 1" in caveat for caveat in said.caveats)
    assert any(caveat.startswith("One seed was trained.") for caveat in said.caveats)


def test_answer_with_seeds_gives_their_range_and_no_caveat_of_one(three_seeds: Study) -> None:
    said = views.answer(three_seeds)
    assert "(mean and range of 3 seeds)" in said.sentences[0]
    assert not any("One seed" in caveat for caveat in said.caveats)


def test_answer_of_an_unfinished_study_is_of_so_far(unfinished: Study) -> None:
    said = views.answer(unfinished)
    assert said.headline.startswith("So far")
    assert any("2 of 3 trials" in caveat for caveat in said.caveats)


def test_answer_when_every_rate_failed(all_failed: Study) -> None:
    assert views.answer(all_failed).headline == "Every rate failed: try smaller ones."


def test_answer_before_and_about_one_rate(build: Builder) -> None:
    nothing = build({0.1: 100}, "nothing", steps=100, reached={0.1: 0})
    assert views.answer(nothing) == ("Nothing has been trained yet.", (), ())
    one = views.answer(build({0.001: 1000}, "one"))
    assert one.headline == "A learning rate of 0.001 learns."
    assert one.caveats[0].startswith("Only this rate")


def test_answer_warns_at_the_end_of_the_ladder(build: Builder) -> None:
    caveats = views.answer(build(dict.fromkeys((1e-5, 1e-4, 1e-3), 1000))).caveats
    assert "0.001 is the largest rate that was trained" in caveats[0]


def test_answer_tells_of_exceptions(build: Builder) -> None:
    failure = Failure(0, "exception", None, "ValueError: no", "mend it")
    broken = Burst(TrialId(0.1, 0), 0, 0, (), (), (), (), failure, 0.0)
    caveats = views.answer(build({0.1: 1000}, bursts=[broken])).caveats
    assert any("exception, the first at lr 0.1, seed 0: ValueError: no" in c for c in caveats)


def test_answer_recommends_without_reserve_once_a_rival_was_trained_to_the_end(
    build: Builder,
) -> None:
    targets = {0.001: 1000, 1e-4: 1000, 1e-5: 200, 10.0: 1000}
    assert views.answer(build(targets)).headline == "Use a learning rate of 0.001."
    beside_failures = build({0.001: 1000, 0.5: 1000, 10.0: 1000}, "failures")
    assert views.answer(beside_failures).headline == "Use a learning rate of 0.001."
    early_failure = build({0.001: 1000, 0.5: 200}, "early")
    assert views.answer(early_failure).headline == "Of the rates trained to the end, use 0.001."


def test_answer_says_where_chance_is_only_the_untrained_network(
    no_metric: Study, build: Builder
) -> None:
    said = views.answer(no_metric)
    assert said.headline == (
        "Use a learning rate of 0.001, which does better than the untrained network."
    )
    assert "the untrained network has a loss of 2.30" in said.sentences[0]
    assert any("better than chance only means better than that" in c for c in said.caveats)
    assert views.response(no_metric).chance_name == "untrained"
    one = build({0.001: 400}, "one", problem=no_metric.problem, metric=False, steps=400)
    assert views.answer(one).headline == (
        "A learning rate of 0.001 does better than the untrained network."
    )
    given = replace(no_metric.problem, chance=Chance(CHANCE, "given"))
    known = views.answer(build({0.001: 400}, "known", problem=given, metric=False, steps=400))
    assert views.response(build({0.001: 400}, "seen")).chance_name == "knowing nothing"
    assert "untrained" not in " ".join([known.headline, *known.sentences, *known.caveats])


def test_answer_tells_too_few_held_out_examples_from_too_few_steps(build: Builder) -> None:
    few = replace(evaluation(0.1, 1000), examples=10, correct=5, metric=0.5)
    trial = TrialId(0.1, 0)
    made = Burst(trial, 0, 1000, (2.3,) * 1000, (), (), (few,), None, 1.0)
    chance = Chance(CHANCE, "initial loss", (), ((10, 0.25),))
    said = views.answer(build({0.1: 1000}, bursts=[made], problem=facts(chance=chance)))
    assert said.headline == "No rate was shown to learn: the held-out examples are too few to tell."


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("data", "batch that cannot be used at any rate"),
        ("worker", "killing the worker three times"),
    ],
)
def test_answer_tells_of_failures_that_are_not_the_rates(
    build: Builder, cause: Any, words: str
) -> None:
    failure = Failure(0, cause, None, "batch 0 holds nan", "mend it")
    broken = Burst(TrialId(0.1, 0), 0, 0, (), (), (), (), failure, 0.0)
    said = views.answer(build({0.1: 1000}, bursts=[broken]))
    assert said.headline == "No rate has learned yet."
    assert any(words in c and "batch 0 holds nan" in c for c in said.caveats)


def test_response_has_every_trial_with_the_step_it_was_measured_at(demo: Study) -> None:
    view = views.response(demo)
    assert {p.lr: p.step for p in view.points} == {h.trial.lr: h.target for h in demo.trials}
    assert all(p.provisional == (p.step < 1000) for p in view.points)
    assert (view.best, view.band, view.majority) == (0.001, (0.001, 0.001), 0.1127)
    assert view.common is not None
    assert view.common.step == 200
    assert view.common.lrs == demo.lrs


def test_response_shows_broken_trials_and_not_those_that_wait(
    three_seeds: Study, unfinished: Study
) -> None:
    broken = [p for p in views.response(three_seeds).points if p.broken]
    assert {p.lr for p in broken} == {10.0}
    assert all(p.loss is None for p in broken)
    waiting = next(p for p in views.response(unfinished).points if p.lr == 0.5)
    assert not waiting.broken
    assert waiting.loss is None


def test_response_without_metric_has_no_majority(no_metric: Study) -> None:
    view = views.response(no_metric)
    assert view.metric is None
    assert view.majority is None
    assert all(p.metric is None for p in view.points)


def test_curves_keep_every_point_of_short_and_peaks_of_long_trials(build: Builder) -> None:
    short, long = build({0.1: 900}, "s", steps=900), build({0.1: 9000}, "l", steps=9000)
    for study, most in ((short, 900), (long, 2000)):
        (curve,) = views.curves(study)
        peak = study.trials[0].peak
        assert peak is not None
        assert len(curve.loss.steps) <= most
        place = curve.loss.steps.index(peak[0])
        assert curve.loss.values[place] == pytest.approx(peak[1], rel=1e-4)


def test_curves_of_many_trials_are_bounded_together(build: Builder) -> None:
    study = build(dict.fromkeys(np.geomspace(1e-6, 1, 50).tolist(), 700), steps=700, seeds=range(8))
    drawn = views.curves(study)
    assert len(drawn) == 400
    assert sum(len(c.loss.steps) for c in drawn) <= 400 * 200


def test_thinning_breaks_at_what_is_not_finite_and_never_overflows() -> None:
    values = np.array([1.0, math.nan, math.inf, 1e308, 1e308, -math.inf])
    series = thin(np.arange(6), values)
    assert series.values == (1.0, None, None, 1e308, 1e308, None)
    assert thin(np.arange(0), np.zeros(0)) == ((), (), (), ())
    long = thin(np.arange(5000), np.full(5000, math.nan), growing=True)
    assert set(long.values) == {None}


def test_high_and_low_are_the_pair_trained_to_the_horizon(
    demo: Study, three_seeds: Study, all_failed: Study, unfinished: Study
) -> None:
    def pair(study: Study) -> tuple[float | None, float | None]:
        high, low = views.high_and_low(study)
        return high and high.lr, low and low.lr

    assert pair(demo) == (0.5, 0.001)
    assert pair(three_seeds) == (0.1, 0.001)  # not 10, which lasted 37 steps
    assert pair(all_failed) == (0.5, None)
    assert pair(unfinished) == (None, 0.001)


def test_high_may_be_a_trial_that_broke_when_none_lasted(build: Builder) -> None:
    high, _ = views.high_and_low(build({0.001: 1000, 10.0: 1000}))
    assert high is not None
    assert (high.lr, high.failed_at) == (10.0, 37)


def test_adam_schedule_is_the_optimizers_own(demo: Study, no_metric: Study) -> None:
    view = views.adam_schedule(demo)
    assert view is not None
    assert [(r.lr, r.role) for r in view.rates] == [(0.5, "fails"), (0.001, "best")]
    for shown in view.rates:
        assert shown.steps[0] == 1
        assert shown.steps[-1] == 1000
        exact = effective_lr(shown.lr, shown.steps)
        np.testing.assert_allclose(shown.effective, exact, rtol=1e-5)
    assert views.adam_schedule(no_metric) is None


def test_adam_schedule_of_a_long_nesterov_study_is_thinned(build: Builder) -> None:
    settings = {"optimizer": "adam-nesterov", "steps": 50_000, "probe_every": 5000}
    study = build({0.001: 50_000}, **settings)
    view = views.adam_schedule(study)
    assert view is not None
    assert view.nesterov
    assert len(view.rates[0].steps) <= 300


def test_table_counts_seeds_and_keeps_the_reason(three_seeds: Study) -> None:
    rows = {row.lr: row for row in views.table(three_seeds)}
    assert list(rows) == sorted(rows)
    assert rows[10.0].valid_loss is None
    assert rows[10.0].steps == (37, 37)
    best = rows[0.001]
    assert best.valid_loss is not None
    assert best.valid_loss.seeds == 3
    assert best.valid_loss.low < best.valid_loss.mean < best.valid_loss.high
    assert best.test_metric is not None
    assert all(row.reason and row.verdict in MARKS for row in rows.values())


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of reference curves in place of the packaged one."""
    path = tmp_path / "reference.json"
    curve = {
        "lr": 0.001,
        "steps": 1000,
        "loss": [2.0, None, "inf"],
        "accuracy_steps": [0, 10],
        "accuracy": [0.1, 0.9],
        "test_accuracy": 0.98,
    }
    source = {"framework": "TensorFlow", "version": "2.99"}
    path.write_text(json.dumps({"provenance": source, "curves": [curve]}))
    monkeypatch.setattr(elsewhere, "REFERENCE", path)
    return path


def test_what_stands_behind_a_curve_is_named_to_who_does_not_see_it(
    demo: Study, written: Path
) -> None:
    reference = views.reference_curves(demo)
    pair = pair_figures(views.high_and_low(demo), reference, views.response(demo), demo.horizon)
    alts = {figure.name: figure.alt for figure in pair}
    assert alts["pair-low"].endswith("; a dashed grey line is TensorFlow 2.99.")
    assert not any("{" in alt for alt in alts.values())


def test_reference_goes_with_the_same_experiment_only(
    demo: Study, three_seeds: Study, no_metric: Study, build: Builder, written: Path
) -> None:
    found = views.reference_curves(demo)
    assert found is not None
    behind = views.behind(0.001, found)
    assert behind is not None
    assert behind.made_by == "TensorFlow 2.99"
    assert behind.loss.values == (2.0, None, None)
    assert views.behind(0.5, found) is None
    others = [
        three_seeds,  # another horizon
        no_metric,  # another problem
        build({0.001: 1000}, "nadam", optimizer="nadam"),
        build({0.001: 1000}, "cosine", schedule="cosine"),
        build({0.001: 1000}, "dropout", reference="mnist-cnn --keep-prob 0.9"),
    ]
    assert [views.reference_curves(study) for study in others] == [None] * len(others)
    written.unlink()
    assert views.reference_curves(demo) is None


def test_views_of_losses_below_zero_and_evaluations_that_are_not_finite(build: Builder) -> None:
    trial, settings = TrialId(0.1, 0), plan(10)
    made = burst(TrialId(0.001, 0), 10, settings)
    negative = Burst(trial, 0, 10, (-1.0,) * 10, (), (), (), None, 1.0)
    bad = evaluation(0.1, 10)
    lost = Burst(
        TrialId(1.0, 0), 0, 10, (math.inf,) * 10, (), (),
        (type(bad)(10, "valid", math.nan, 0.1, 1000, 100, (math.nan,) * 20),), None, 1.0,
    )  # fmt: skip
    study = build(
        {0.001: 10, 0.1: 10, 1.0: 10},
        steps=10,
        bursts=[made, negative, lost],
        problem=facts(chance=Chance(CHANCE, "given")),
    )
    point = next(p for p in views.response(study).points if p.lr == 1.0)
    assert point.loss is None
    assert point.broken
    assert len(views.curves(study)) == 3
    assert views.table(study)


@pytest.mark.parametrize("log", [True, False])
def test_names_beside_curves_keep_apart_and_inside(build: Builder, log: bool) -> None:
    """Whatever step the curves end at: those of paused and of broken trials too."""
    targets = {1e-5: 300, 1e-4: 290, 3e-4: 300, 1e-3: 1000, 0.1: 200, 0.5: 210, 5.0: 100, 10.0: 99}
    reach = Reach(-2.0, 2.0, log=True) if log else Reach(0.0, 8.0, log=False)
    found = ends(views.curves(build(targets)), reach, 0.055)
    assert {end.lr for end in found} == set(targets)
    heights = sorted(math.log10(end.height) if log else end.height for end in found)
    gap = 0.055 * (reach.high - reach.low)
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(heights))
    assert heights[0] >= reach.low
    assert heights[-1] <= reach.high


def test_apart_stays_inside_where_there_is_room() -> None:
    places = apart([0.0, 0.0, 0.0, 9.9, 10.0], 1.0, within=(0.0, 10.0))
    assert sorted(places) == pytest.approx([0, 1, 2, 9, 10])


def test_apart_keeps_order_and_distance() -> None:
    places = apart([3.0, 1.0, 1.0, 1.1, 9.0], 0.5)
    ordered = sorted(places)
    assert all(b - a >= 0.5 - 1e-9 for a, b in pairwise(ordered))
    assert places[4] == 9.0
