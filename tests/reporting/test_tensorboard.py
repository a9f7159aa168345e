"""Event files, read back with TensorBoard's own reader and its hyperparameter page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etascope.errors import StudyError, UsageError
from etascope.reporting.tensorboard import write_tensorboard
from etascope.study import Study

pytest.importorskip("tensorboard")


def read(directory: Path) -> dict[str, Any]:
    """The runs below a log directory, as TensorBoard finds them."""
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    multiplexer = EventMultiplexer(size_guidance={"scalars": 0, "tensors": 0})
    multiplexer.AddRunsFromDirectory(str(directory))
    multiplexer.Reload()
    return {name: multiplexer.GetAccumulator(name) for name in multiplexer.Runs()}


def scalar(run: Any, tag: str) -> list[tuple[int, float]]:
    """A curve; TensorBoard turns what was written as a number into a tensor."""
    from tensorboard.util import tensor_util

    return [
        (event.step, float(tensor_util.make_ndarray(event.tensor_proto)))
        for event in run.Tensors(tag)
    ]


def test_one_run_a_trial_with_all_curves(three_seeds: Study, tmp_path: Path) -> None:
    assert write_tensorboard(three_seeds, tmp_path / "tb") == tmp_path / "tb"
    runs = read(tmp_path / "tb")
    names = {f"lr={h.trial.lr!r},seed={h.trial.seed}" for h in three_seeds.trials}
    assert set(runs) == names
    history = next(h for h in three_seeds.trials if h.trial.lr == 0.001 and h.trial.seed == 1)
    run = runs["lr=0.001,seed=1"]
    loss = scalar(run, "train/loss")
    assert [step for step, _ in loss] == list(range(500))
    np.testing.assert_allclose([v for _, v in loss], history.loss, rtol=1e-6)
    metric = scalar(run, "train/metric")
    assert [step for step, _ in metric] == history.probe_steps.tolist()
    valid = history.evaluation("valid")
    assert valid is not None
    assert scalar(run, "valid/loss")[-1] == (500, pytest.approx(valid.loss))
    assert scalar(run, "valid/metric")[-1] == (500, pytest.approx(valid.metric))
    test = history.evaluation("test")
    assert test is not None
    assert scalar(run, "test/metric") == [(500, pytest.approx(test.metric))]


def test_what_is_not_finite_stays_so(three_seeds: Study, tmp_path: Path) -> None:
    runs = read(write_tensorboard(three_seeds, tmp_path))
    last = scalar(runs["lr=10.0,seed=0"], "train/loss")[-1]
    assert last == (36, float("inf"))


def test_hyperparameters_and_outcome_of_every_trial(three_seeds: Study, tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import api_pb2, metadata

    runs = read(write_tensorboard(three_seeds, tmp_path))
    for history in three_seeds.trials:
        run = runs[f"lr={history.trial.lr!r},seed={history.trial.seed}"]
        content = run.PluginTagToContent(metadata.PLUGIN_NAME)
        experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
        assert [info.name for info in experiment.hparam_infos] == ["lr", "seed"]
        tags = {info.name.tag for info in experiment.metric_infos}
        assert tags == {"valid/loss", "valid/metric", "test/metric"}
        start = metadata.parse_session_start_info_plugin_data(
            content[metadata.SESSION_START_INFO_TAG]
        )
        assert start.hparams["lr"].number_value == history.trial.lr
        assert start.hparams["seed"].number_value == history.trial.seed
        end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
        failed = history.status == "failed"
        assert end.status == (api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS)
        assert end.end_time_secs - start.start_time_secs == pytest.approx(history.seconds)


def test_the_hyperparameter_page_lists_one_session_a_trial(demo: Study, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import (
        api_pb2,
        backend_context,
        get_experiment,
        list_session_groups,
    )

    write_tensorboard(demo, tmp_path)
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request = RequestContext()
    found = context.hparams_metadata(request, "")
    experiment = get_experiment.Handler(request, context, "", api_pb2.GetExperimentRequest()).run()
    assert [info.name for info in experiment.hparam_infos] == ["lr", "seed"]
    assert found
    listing = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        col_params=[api_pb2.ColParams(hparam="lr")],
        allowed_statuses=[
            api_pb2.STATUS_RUNNING,
            api_pb2.STATUS_SUCCESS,
            api_pb2.STATUS_FAILURE,
            api_pb2.STATUS_UNKNOWN,
        ],
    )
    groups = list_session_groups.Handler(request, context, "", listing).run().session_groups
    assert sorted(g.hparams["lr"].number_value for g in groups) == sorted(demo.lrs)
    assert all(len(group.sessions) == 1 for group in groups)
    best = next(g for g in groups if g.hparams["lr"].number_value == 0.001)
    values = {value.name.tag: value.value for value in best.metric_values}
    assert values["test/metric"] > 0.9


def test_without_metric_and_untrained(no_metric: Study, unfinished: Study, tmp_path: Path) -> None:
    runs = read(write_tensorboard(no_metric, tmp_path / "a"))
    tags = {tag for run in runs.values() for tag in run.Tags()["tensors"]}
    assert {tag for tag in tags if "hparams" not in tag} == {"train/loss", "valid/loss"}
    started = read(write_tensorboard(unfinished, tmp_path / "b"))
    assert set(started) == {"lr=0.0001,seed=0", "lr=0.001,seed=0"}


def test_writing_again_replaces_the_runs(demo: Study, tmp_path: Path) -> None:
    for _ in range(2):
        write_tensorboard(demo, tmp_path)
    files = list(tmp_path.rglob("events.out.tfevents*"))
    assert len(files) == len(demo.trials)


def test_a_folder_that_cannot_be_made(demo: Study, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot write event files"):
        write_tensorboard(demo, tmp_path / "file")


def test_missing_tensorboard_names_the_install_command(
    demo: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    with pytest.raises(UsageError, match=r"pip install 'etascope\[tensorboard\]'"):
        write_tensorboard(demo, tmp_path)
