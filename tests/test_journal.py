import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reporting.written_studies import facts, plan

import etascope as es
from etascope.appending import BLOCK
from etascope.encoding import STEPS, StepsFile, decode_burst
from etascope.journal import JOURNAL, Journal, read_header, read_lines
from etascope.records import Burst, Evaluation, Failure, TrialId, merge

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
    cause=st.sampled_from(["non-finite", "exception", "data", "worker"]),
    layer=st.none() | st.text(max_size=9),
    message=st.text(max_size=30),
    remedy=st.text(max_size=30),
)


@st.composite
def whole_bursts(draw):
    """Bursts as engines make them: what they tell lies between their first and last step."""
    start = draw(st.integers(0, 100))
    stop = draw(st.integers(start, start + 5))
    inside = st.integers(start, stop)
    failure = draw(st.none() | failures)
    count = stop - start + (failure is not None and draw(st.booleans()))
    probes = draw(st.lists(inside, max_size=3).map(sorted))
    told = draw(st.lists(evaluations, max_size=2))
    return Burst(
        trial=TrialId(draw(st.floats(1e-12, 1e6)), draw(st.integers(0, 2**64 - 1))),
        start=start,
        stop=stop,
        loss=draw(st.tuples(*[any_float] * count)),
        probe_steps=tuple(probes),
        probe_metric=draw(st.tuples(*[any_float] * len(probes))),
        evaluations=tuple(replace(e, step=draw(inside)) for e in told),
        failure=failure and replace(failure, step=draw(inside)),
        seconds=draw(st.floats(0, 1e6)),
    )


bursts = whole_bursts()


def burst(start: int = 0, stop: int = 2) -> Burst:
    losses = tuple(float(step) for step in range(start, stop))
    return Burst(TrialId(0.1, 0), start, stop, losses, (), (), (), None, 0.5)


def begun(directory: Path) -> Journal:
    """A journal of a study that has been begun."""
    journal = Journal(directory)
    if journal.header is None:
        journal.write_header(header())
    return journal


def header() -> dict[str, object]:
    return {
        "reference": None,
        "problem": asdict(facts()),
        "plan": plan(),
        "environment": {},
        "factories": {},
    }


def records(directory: Path) -> list[dict[str, object]]:
    """The records of a journal, each of which is whole."""
    lines = list(read_lines(directory, read_header(directory)[1]))
    assert [line.damage for line in lines] == [""] * len(lines)
    return [line.record for line in lines]


def read_bursts(directory: Path) -> list[Burst]:
    """The bursts of a journal as an engine would have made them: with tuples."""
    with StepsFile(directory) as steps:
        decoded = [decode_burst(r, steps)[0] for r in records(directory) if r["kind"] == "burst"]
    return [
        replace(
            burst,
            loss=tuple(map(float, burst.loss)),
            probe_steps=tuple(burst.probe_steps),
            probe_metric=tuple(map(float, burst.probe_metric)),
        )
        for burst in decoded
    ]


@settings(deadline=None)
@given(made=st.lists(bursts, max_size=4))
def test_bursts_come_back_from_the_disk_bit_for_bit(tmp_path_factory, made):
    directory = tmp_path_factory.mktemp("exact")
    with begun(directory) as journal:
        for one in made:
            journal.append(one)
    assert repr(read_bursts(directory)) == repr(made)  # repr, since nan != nan
    for line in (directory / JOURNAL).read_text().split("\n")[:-1]:
        json.loads(line, parse_constant=pytest.fail)


def test_records_are_read_back_in_order(tmp_path):
    with begun(tmp_path / "study") as journal:
        journal.request({TrialId(0.1, 0): 4})
        journal.append(burst(0, 2))
        journal.append(burst(2, 4))
    kinds = [record["kind"] for record in records(tmp_path / "study")]
    assert kinds == ["request", "burst", "burst"]


def test_a_record_torn_at_any_byte_is_dropped_and_cut_before_appending(tmp_path):
    whole = tmp_path / "whole"
    with begun(whole) as journal:
        journal.append(burst(0, 2))
        sizes = {name: (whole / name).stat().st_size for name in (JOURNAL, STEPS)}
        journal.append(burst(2, 4))
    # The numbers are written first: either they are torn and the line is not begun, or it is torn.
    torn = [(JOURNAL, n) for n in range(sizes[JOURNAL], (whole / JOURNAL).stat().st_size)]
    torn += [(STEPS, n) for n in range(sizes[STEPS], (whole / STEPS).stat().st_size)]
    for number, (name, size) in enumerate(torn):
        directory = tmp_path / str(number)
        shutil.copytree(whole, directory)
        os.truncate(directory / name, size)
        if name == STEPS:
            os.truncate(directory / JOURNAL, sizes[JOURNAL])
        # A line that lacks nothing but its newline is whole.
        lost = name == STEPS or size < (whole / JOURNAL).stat().st_size - 1
        assert read_bursts(directory) == [burst(0, 2), burst(2, 4)][: 2 - lost]
        with Journal(directory) as journal:
            assert read_bursts(directory) == [burst(0, 2), burst(2, 4)][: 2 - lost]
            if lost:
                journal.append(burst(2, 4))
        assert read_bursts(directory) == [burst(0, 2), burst(2, 4)]


@pytest.mark.parametrize("length", [60, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_a_torn_line_is_cut_however_long_it_is(tmp_path, length):
    with begun(tmp_path) as journal:
        journal.append(burst())
        kept = (tmp_path / JOURNAL).stat().st_size
        journal.conclude({"said": "x" * length})
    os.truncate(tmp_path / JOURNAL, kept + length)
    with Journal(tmp_path) as journal:
        assert (tmp_path / JOURNAL).stat().st_size == kept
        journal.append(burst())


@pytest.mark.parametrize("tail", [b"{", b"{}", b"my notes", b"\0\0"])
def test_what_is_no_torn_line_of_the_study_is_never_cut(tmp_path, tail):
    with begun(tmp_path) as journal:
        journal.append(burst())
    path = tmp_path / JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    if whole.startswith(tail.strip(b"\0")):
        with Journal(tmp_path):
            assert path.read_bytes() == whole
    else:
        with pytest.raises(es.StudyError, match="does not end with a line of this study"):
            Journal(tmp_path)
        assert path.read_bytes() == whole + tail


def test_numbers_that_are_not_those_of_the_record_are_noticed(tmp_path):
    with begun(tmp_path) as journal:
        journal.append(burst())
    path = tmp_path / STEPS
    numbers = path.read_bytes()
    for damaged in (numbers[:-1], bytes(len(numbers)), b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"does not hold|ends before"):
            read_bursts(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        read_bursts(tmp_path)


def test_a_message_with_half_a_character_is_kept_in_ascii(tmp_path):
    """Names of files that are no UTF-8 come as such halves."""
    failure = Failure(1, "exception", None, "no file \udcff", "mend it")
    with begun(tmp_path) as journal:
        journal.append(replace(burst(), failure=failure))
    (read,) = read_bursts(tmp_path)
    assert read.failure == replace(failure, message="no file \\udcff")


def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path):
    code = (
        "import sys; from pathlib import Path; from etascope.journal import Journal\n"
        "from etascope.errors import StudyError\n"
        "try: Journal(Path(sys.argv[1]))\n"
        "except StudyError as error: print(error)\n"
    )
    with begun(tmp_path) as journal:
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
    begun(tmp_path).__exit__()
    run = [sys.executable, "-c", code, str(tmp_path)]
    told = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert "cannot write the journal" in told
    written = [record["stop"] for record in records(tmp_path)]
    assert written
    assert written[-1] == int(told.split()[0])
    assert (tmp_path / JOURNAL).read_bytes().endswith(b"\n")


def test_a_read_only_directory_is_one_clear_error_and_stays_readable(tmp_path):
    """Root may write everywhere, so the attempt is made by somebody who is not."""
    code = """
import os, sys
from pathlib import Path
from etascope.errors import StudyError
from etascope.journal import Journal, read_header, read_lines
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
print(len(list(read_lines(Path("."), read_header(Path("."))[1]))))
"""
    with begun(tmp_path) as journal:
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


def test_merging_refuses_records_that_do_not_follow_on():
    trial = TrialId(0.1, 0)
    merged = merge(trial, 4, [burst(0, 2), burst(2, 4)])
    assert merged.loss.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert merged.status == "finished"
    with pytest.raises(ValueError, match="follow on"):
        merge(trial, 4, [burst(0, 2), burst(3, 4)])
    with pytest.raises(ValueError, match="follow on"):
        merge(trial, 4, [burst(0, 2), burst(0, 2)])


def test_the_peak_of_a_history_ignores_what_is_not_finite():
    trial = TrialId(0.1, 0)
    wild = replace(burst(0, 2), loss=(2.0, math.inf), stop=1)
    assert merge(trial, 4, [wild]).peak == (0, 2.0)
    assert merge(trial, 4, []).peak is None


@pytest.mark.parametrize("cause", ["exception", "worker"])
def test_a_burst_after_a_failure_that_is_not_final_takes_its_place(cause):
    held_out = [Evaluation(step, "valid", 1.0, None, 1, None, (1.0,)) for step in range(5)]
    failure = Failure(3, cause, None, "what it said", "mend it")
    first = replace(burst(0, 2), probe_steps=(0,), probe_metric=(0.5,), evaluations=(held_out[2],))
    lost = replace(
        burst(2, 3), probe_steps=(2,), probe_metric=(9.0,), evaluations=(held_out[3],),
        failure=failure,
    )  # fmt: skip
    good = replace(burst(2, 4), probe_steps=(2,), probe_metric=(0.7,), evaluations=(held_out[4],))
    trial = TrialId(0.1, 0)

    failed = merge(trial, 4, [first, lost])
    assert (failed.status, failed.step, failed.resume_step) == ("failed", 3, 2)
    assert merge(trial, 4, [first, lost, lost]).loss.tolist() == failed.loss.tolist()

    smooth = merge(trial, 4, [first, good])
    for records in ([first, lost, good], [first, lost, lost, good], [first, lost, first, good]):
        mended = merge(trial, 4, records)
        assert mended.failure is None
        assert (mended.status, mended.resume_step) == ("finished", 4)
        assert mended.loss.tolist() == smooth.loss.tolist()
        assert mended.probe_steps.tolist() == [0, 2]
        assert mended.probe_metric.tolist() == [0.5, 0.7]
        assert mended.evaluations == (held_out[2], held_out[4])
        assert mended.seconds == 0.5 * len(records)  # what was spent was spent

    for wrong in ([first, lost, burst(1, 2)], [first, lost, burst(3, 4)]):
        with pytest.raises(ValueError, match="follow on"):
            merge(trial, 4, wrong)


@pytest.mark.parametrize("cause", ["non-finite", "data"])
def test_nothing_follows_a_final_failure(cause):
    failed = replace(burst(2, 3), failure=Failure(3, cause, None, "what it said", "lower it"))
    trial = TrialId(0.1, 0)
    assert merge(trial, 4, [burst(0, 2), failed]).resume_step is None
    with pytest.raises(ValueError, match="follow on"):
        merge(trial, 4, [burst(0, 2), failed, burst(2, 4)])
