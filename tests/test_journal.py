import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import etascope as es
from etascope.journal import (
    JOURNAL,
    Journal,
    decode_burst,
    dumps,
    encode_burst,
    read_records,
    write_atomically,
)
from etascope.records import Burst, Evaluation, Failure, TrialId

any_float = st.floats(allow_nan=True, allow_infinity=True)
floats = st.lists(any_float, max_size=5).map(tuple)
evaluations = st.builds(
    Evaluation,
    step=st.integers(0, 10**6),
    split=st.sampled_from(["valid", "test"]),
    loss=any_float,
    metric=st.none() | any_float,
    examples=st.integers(1, 10**6),
    correct=st.none() | st.integers(0, 10**6),
    batch_losses=floats,
)
failures = st.builds(
    Failure,
    step=st.integers(0, 10**6),
    cause=st.sampled_from(["non-finite", "exception"]),
    layer=st.none() | st.text(max_size=9),
    message=st.text(max_size=30),
    remedy=st.text(max_size=30),
)
bursts = st.builds(
    Burst,
    trial=st.builds(TrialId, lr=st.floats(1e-12, 1e6), seed=st.integers(0, 10**6)),
    start=st.integers(0, 100),
    stop=st.integers(0, 100),
    loss=floats,
    probe_steps=st.lists(st.integers(0, 100), max_size=3).map(tuple),
    probe_metric=floats,
    evaluations=st.lists(evaluations, max_size=2).map(tuple),
    failure=st.none() | failures,
    seconds=st.floats(0, 1e6),
)


def burst(start: int = 0, stop: int = 2) -> Burst:
    losses = tuple(float(step) for step in range(start, stop))
    return Burst(TrialId(0.1, 0), start, stop, losses, (), (), (), None, 0.5)


@given(bursts)
def test_a_burst_survives_strict_json_bit_for_bit(record):
    text = dumps(encode_burst(record))
    again = decode_burst(json.loads(text, parse_constant=pytest.fail))
    assert repr(again) == repr(record)  # repr, since nan != nan


def test_records_are_read_back_in_order(tmp_path):
    with Journal(tmp_path / "study") as journal:
        journal.request({TrialId(0.1, 0): 4})
        journal.append(burst(0, 2))
        journal.append(burst(2, 4))
    kinds = [record["kind"] for record in read_records(tmp_path / "study")]
    assert kinds == ["request", "burst", "burst"]


@given(cut=st.integers(1, 400))
def test_a_torn_last_line_is_dropped_and_cut_before_appending(tmp_path_factory, cut):
    directory = tmp_path_factory.mktemp("torn")
    with Journal(directory) as journal:
        journal.append(burst(0, 2))
        whole = (directory / JOURNAL).stat().st_size
        journal.append(burst(2, 4))
    size = (directory / JOURNAL).stat().st_size
    os.truncate(directory / JOURNAL, max(whole, size - cut))
    torn = size - cut > whole
    assert [r["start"] for r in read_records(directory)] == [0]
    with Journal(directory) as journal:
        assert (directory / JOURNAL).stat().st_size == whole or not torn
        journal.append(burst(2, 4))
    assert [r["start"] for r in read_records(directory)] == [0, 2]


def test_a_damaged_line_in_the_middle_names_file_and_line(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append(burst())
    path = tmp_path / JOURNAL
    path.write_bytes(b'{"kind": NaN}\n' + path.read_bytes())
    with pytest.raises(es.StudyError, match="line 1"):
        list(read_records(tmp_path))


def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path):
    code = (
        "import sys; from pathlib import Path; from etascope.journal import Journal\n"
        "from etascope.errors import StudyError\n"
        "try: Journal(Path(sys.argv[1]))\n"
        "except StudyError as error: print(error)\n"
    )
    with Journal(tmp_path) as journal:
        run = [sys.executable, "-c", code, str(tmp_path)]
        told = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        assert "another process is writing" in told
        journal.append(burst())
    with Journal(tmp_path):
        pass  # the lock is free again


def test_a_full_disk_is_one_clear_error_and_what_was_written_stays(tmp_path):
    """The limit on the size of a file stands for the disk: write() fails half-way, as it does."""
    code = """
import resource, signal, sys
from pathlib import Path
from etascope.errors import StudyError
from etascope.journal import Journal
from etascope.records import Burst, TrialId
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
step = 0
try:
    while True:
        loss = (0.123456,) * 50
        journal.append(Burst(TrialId(0.1, 0), step, step + 50, loss, (), (), (), None, 1.0))
        step += 50
except StudyError as error:
    print(step, error)
"""
    run = [sys.executable, "-c", code, str(tmp_path)]
    told = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert "cannot write the journal" in told
    written = [record["stop"] for record in read_records(tmp_path)]
    assert written
    assert written[-1] == int(told.split()[0])
    assert (tmp_path / JOURNAL).read_bytes().endswith(b"\n")


def test_a_read_only_directory_is_one_clear_error_and_stays_readable(tmp_path):
    """Root may write everywhere, so the attempt is made by somebody who is not."""
    code = """
import os, sys
from pathlib import Path
from etascope.errors import StudyError
from etascope.journal import Journal, read_records
directory = Path(sys.argv[1])
os.chdir(directory)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    Journal(Path("."))
except StudyError as error:
    print(error)
print(len(list(read_records(Path(".")))))
"""
    with Journal(tmp_path) as journal:
        journal.append(burst())
    tmp_path.chmod(0o555)
    run = [sys.executable, "-c", code, str(tmp_path)]
    told = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    tmp_path.chmod(0o755)
    assert told[0].startswith("cannot create the study in .: Permission denied")
    assert told[1:] == ["1"]


def test_a_directory_that_cannot_be_made_is_one_clear_error():
    with pytest.raises(es.StudyError, match="cannot create the study"):
        Journal(Path("/proc/etascope"))


def test_an_atomic_write_leaves_old_content_where_it_fails(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_merging_refuses_records_that_do_not_follow_on():
    from etascope.records import merge

    trial = TrialId(0.1, 0)
    merged = merge(trial, 4, [burst(0, 2), burst(2, 4)])
    assert merged.loss.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert merged.status == "finished"
    with pytest.raises(ValueError, match="follow on"):
        merge(trial, 4, [burst(0, 2), burst(3, 4)])
    with pytest.raises(ValueError, match="follow on"):
        merge(trial, 4, [burst(0, 2), burst(0, 2)])


def test_the_peak_of_a_history_ignores_what_is_not_finite():
    from etascope.records import merge

    trial = TrialId(0.1, 0)
    wild = replace(burst(0, 2), loss=(2.0, math.inf), stop=1)
    assert merge(trial, 4, [wild]).peak == (0, 2.0)
    assert merge(trial, 4, []).peak is None
