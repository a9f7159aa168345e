"""Several optimizers on one problem: the numbers, the page and what cannot be compared."""

import math

import pytest
from small import blobs_problem, line_problem

import etascope as es
from etascope.reporting.compared import compare, comparison_figure


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    lrs = es.logspace(1e-3, 10, 5)
    return [
        es.sweep(blobs_problem(), lrs, steps=30, seeds=2, optimizer=name, out=out / name)
        for name in ("sgd", "adam")
    ]


def test_each_row_is_what_its_study_says(studies):
    found = compare(studies)
    assert [row.name for row in found.rows] == ["sgd", "adam"]
    for row, study in zip(found.rows, studies, strict=True):
        assert row.lr == study.best
        assert row.band == study.band
        assert row.loss == min(row.losses)
        assert 0 < row.sensitivity < found.chance
    assert found.reach == (1e-3, 10.0)


def test_a_finding_is_compared_with_a_sweep(studies, tmp_path):
    found = es.find(blobs_problem(), steps=30, optimizer="nadam", out=tmp_path / "nadam")
    rows = compare([*studies, es.open_study(found.study)]).rows
    assert (rows[2].lr, rows[2].band) == (found.lr, found.band)


def test_the_page_holds_every_optimizer(studies, tmp_path):
    page = es.report([study.path for study in studies], tmp_path / "page.html").read_text()
    assert "Sensitivity" in page
    for name in ("sgd", "adam"):
        assert f'<th scope="row">{name}</th>' in page
    assert "http://" not in page.split("</style>")[1].split("<script>")[0]


def test_every_optimizer_has_a_row_of_its_own_below_the_curves(studies):
    found = compare(studies)
    for shift, kind in ((0.0, "log"), (-10.0, "linear")):  # losses may be negative
        rows = [row._replace(losses=tuple(x + shift for x in row.losses)) for row in found.rows]
        drawn = comparison_figure(
            found._replace(chance=found.chance + shift, rows=(*rows, rows[0]._replace(lr=None)))
        )
        assert drawn.layout["yaxis"]["type"] == kind
        low, high = drawn.layout["yaxis"]["range"]
        lowest = min(loss for row in rows for loss in row.losses)
        assert low < (math.log10(lowest) if kind == "log" else lowest) < high
        names = {t["text"][0]: t["y"][0] for t in drawn.data if t["mode"] == "text"}
        assert names == {"sgd": 0, "adam": 1, "sgd: none learned": 2}
        assert drawn.layout["yaxis2"]["domain"][1] <= drawn.layout["yaxis"]["domain"][0]


def test_what_never_learned_is_not_called_insensitive(tmp_path):
    pair = [
        es.sweep(blobs_problem(), lrs, steps=30, optimizer="sgd", out=tmp_path / name)
        for name, lrs in (("slow", [1e-9, 1e-8]), ("right", [1e-9, 0.3]))
    ]
    slow, right = compare(pair).rows
    assert (slow.lr, slow.sensitivity) == (None, None)
    assert right.lr == 0.3


def test_what_is_not_alike_is_refused(studies, tmp_path):
    other = es.sweep(line_problem(), [0.1, 1.0], steps=30, optimizer="sgd", out=tmp_path)
    with pytest.raises(es.UsageError, match="like with like"):
        compare([studies[0], other])
    with pytest.raises(es.UsageError, match="at least two"):
        es.report(studies[:1], tmp_path / "page.html")
