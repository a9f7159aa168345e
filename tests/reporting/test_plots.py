"""The matplotlib figures: drawn for any study, without pyplot, written as PNG."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from reporting.written_studies import Builder

import etascope as es
from etascope.errors import StudyError, UsageError
from etascope.reporting.plots import plot, save_plots
from etascope.study import Study

PNG = b"\x89PNG"


def test_three_panels_on_a_new_figure(demo: Study) -> None:
    loss, metric, curves = es.plot(demo)
    assert (loss.get_ylabel(), metric.get_ylabel()) == ("held-out loss", "held-out accuracy")
    assert curves.get_ylabel() == "training loss"
    assert loss.get_xscale() == metric.get_xscale() == curves.get_yscale() == "log"
    legend = loss.get_legend()
    assert legend is not None
    assert {"best", "stuck", "too slow"} <= {text.get_text() for text in legend.get_texts()}


def test_axes_of_the_caller_are_used(demo: Study) -> None:
    from matplotlib.figure import Figure

    own = Figure().subplots(3, 1)
    assert plot(demo, own) == tuple(own)
    with pytest.raises(UsageError, match="axes holds 2 axes"):
        plot(demo, own[:2])


def test_every_seed_is_a_mark(three_seeds: Study) -> None:
    loss, _, _ = plot(three_seeds)
    marks = [line for line in loss.lines if line.get_marker() not in ("None", "", None)]
    assert len(marks) == len(three_seeds.trials)


@pytest.mark.parametrize("name", ["unfinished", "all_failed", "no_metric", "three_seeds"])
def test_any_study_is_drawn_to_the_end(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    study: Study = request.getfixturevalue(name)
    plot(study)[0].figure.savefig(tmp_path / "three.png")
    for path in save_plots(study, tmp_path):
        assert path.read_bytes().startswith(PNG)


def test_many_rates_and_none_trained(build: Builder, tmp_path: Path) -> None:
    lrs = {10 ** (-6 + k / 5): 40 for k in range(30)}
    many = build(lrs, "many", steps=40)
    none = build({0.1: 40}, "none", steps=40, reached={0.1: 0})
    assert save_plots(many, tmp_path / "many")
    assert [p.stem for p in save_plots(none, tmp_path / "none")] == ["response", "curves"]


def test_files_of_the_demo(demo: Study, tmp_path: Path) -> None:
    written = save_plots(demo, tmp_path / "new" / "plots")
    assert [p.name for p in written] == [
        "response.png",
        "high-and-low.png",
        "curves.png",
        "schedule.png",
    ]


def test_files_that_cannot_be_written(demo: Study, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot write the plots"):
        save_plots(demo, tmp_path / "file")


def test_pyplot_is_never_loaded(demo: Study) -> None:
    code = (
        "import sys, etascope as es\n"
        f"es.plot(es.open_study({str(demo.path)!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_matplotlib_names_the_install_command(
    demo: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install 'etascope\[plot\]'"):
        plot(demo)
