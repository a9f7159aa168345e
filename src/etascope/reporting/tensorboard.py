"""A study as TensorBoard event files: one run a trial, with its rate and seed as hyperparameters.

    DIR/lr=0.001,seed=0/events.out.tfevents…    train/loss, train/<metric>, valid/…, test/…

TensorBoard's own writer is used, so that neither TensorFlow nor torch's writer is needed. The
experiment summary and the session of a trial stand in the run of the trial itself: TensorBoard
takes the first experiment summary it meets, and there is no run that is no trial.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

from etascope.errors import StudyError, UsageError
from etascope.records import History
from etascope.study import Study


class Scalar(NamedTuple):
    """One value of one curve."""

    tag: str
    step: int
    value: float


def write_tensorboard(study: Study, directory: str | os.PathLike[str]) -> Path:
    """Write a study as TensorBoard event files, one run a trial.

    A run of the same name that is there already is replaced, others are left alone.

    Args:
        study: from `sweep` or `open_study`, finished or not.
        directory: the log directory; show it with `tensorboard --logdir DIRECTORY`.

    Returns:
        The log directory.

    Raises:
        UsageError: if tensorboard is not installed.
        StudyError: if a file cannot be written.
    """
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise UsageError(
            "event files need tensorboard; install it with: pip install 'etascope[tensorboard]'"
        ) from None
    target = Path(directory)
    began = _began(study)
    try:
        for history in study.trials:
            if not history.step and history.failure is None:
                continue
            run = target / run_name(history)
            _clear(run)
            writer = EventFileWriter(str(run), filename_suffix=f".{token_hex(8)}")
            try:
                for event in _events(study, history, began):
                    writer.add_event(event)
            finally:
                writer.close()
    except OSError as error:
        raise StudyError(
            f"cannot write event files to {target}: {error.strerror or error}; name another folder"
        ) from error
    return target


def _clear(run: Path) -> None:
    """Delete the event files of a run that is replaced, and nothing else."""
    if run.is_symlink():
        raise OSError(errno.ELOOP, f"{run.name} is a symbolic link")
    for path in run.glob("events.out.tfevents.*"):
        if stat.S_ISREG(path.lstat().st_mode):
            path.unlink()


def run_name(history: History) -> str:
    """The folder of a trial; the rate as Python writes it, so that two rates never share one."""
    return f"lr={history.trial.lr!r},seed={history.trial.seed}"


def scalars(history: History) -> Iterator[Scalar]:
    """Every value of a trial that TensorBoard is to draw, curve by curve."""
    for step, loss in enumerate(history.loss):
        yield Scalar("train/loss", step, float(loss))
    for step, metric in zip(history.probe_steps, history.probe_metric, strict=True):
        yield Scalar("train/metric", int(step), float(metric))
    for evaluation in history.evaluations:
        if evaluation.split == "valid":
            yield Scalar("valid/loss", evaluation.step, evaluation.loss)
        if evaluation.metric is not None:
            yield Scalar(f"{evaluation.split}/metric", evaluation.step, evaluation.metric)


def _events(study: Study, history: History, began: float) -> Iterator[Any]:
    """The events of a trial: what it is, its values, how it ended."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    def event(summary: Any, step: int) -> Any:
        # Records hold no clock for each step: the trial's own seconds are spread evenly.
        share = step / max(history.step, 1)
        return Event(wall_time=began + share * history.seconds, step=step, summary=summary)

    for summary in _opening(study, history, began):
        yield event(summary, 0)
    for scalar in scalars(history):
        value = Summary.Value(tag=scalar.tag, simple_value=_single(scalar.value))
        yield event(Summary(value=[value]), scalar.step)
    yield event(_closing(history, began), history.step)


def _opening(study: Study, history: History, began: float) -> Iterator[Any]:
    """The experiment with its hyperparameters and metrics, and the trial's own values."""
    from tensorboard.plugins.hparams import summary_v2 as hp

    tags = {"valid/loss": "held-out loss"}
    if study.problem.metric is not None:
        tags |= {"valid/metric": f"held-out {study.problem.metric}"}
        if any(e.split == "test" for h in study.trials for e in h.evaluations):
            tags |= {"test/metric": f"test {study.problem.metric}"}
    domains = {
        "lr": hp.Discrete(list(study.lrs), float),
        "seed": hp.Discrete(list(study.seeds), int),
    }
    yield hp.hparams_config_pb(
        [hp.HParam(name, domain) for name, domain in domains.items()],
        [hp.Metric(tag, display_name=name) for tag, name in tags.items()],
        time_created_secs=began,
    )
    yield hp.hparams_pb(
        {"lr": history.trial.lr, "seed": history.trial.seed},
        trial_id=run_name(history),
        start_time_secs=began,
    )


def _closing(history: History, began: float) -> Any:
    """How the session ended; one that is paused still runs, in TensorBoard's words."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = {"failed": api_pb2.STATUS_FAILURE, "finished": api_pb2.STATUS_SUCCESS}
    end = plugin_data_pb2.SessionEndInfo(
        status=status.get(history.status, api_pb2.STATUS_RUNNING),
        end_time_secs=began + history.seconds,
    )
    content = plugin_data_pb2.HParamsPluginData(session_end_info=end)
    value = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=metadata.create_summary_metadata(content),
        tensor=metadata.NULL_TENSOR,
    )
    return Summary(value=[value])


def _single(value: float) -> float:
    """A value that a 32-bit float can hold; beyond it, infinity."""
    return value if abs(value) < 3.4e38 or math.isnan(value) else math.copysign(math.inf, value)


def _began(study: Study) -> float:
    """When the study began, in seconds since 1970; 0 where its record does not say."""
    try:
        return datetime.fromisoformat(str(study.environment.get("created"))).timestamp()
    except ValueError:
        return 0.0
