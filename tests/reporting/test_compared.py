"""Several optimizers on one problem: the numbers, the page and what cannot be compared."""

import pytest
from small import blobs_problem, line_problem

import etascope as es
from etascope.reporting.compared import compare


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


def test_what_is_not_alike_is_refused(studies, tmp_path):
    other = es.sweep(line_problem(), [0.1, 1.0], steps=30, optimizer="sgd", out=tmp_path)
    with pytest.raises(es.UsageError, match="like with like"):
        compare([studies[0], other])
    with pytest.raises(es.UsageError, match="at least two"):
        es.report(studies[:1], tmp_path / "page.html")
