"""The command line, run as a user runs it."""

import gzip
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import etascope as es
from etascope.encoding import seal, unseal

HERE = Path(__file__).parent
MNIST = Path(es.__file__).parent / "data" / "mnist"
BLOBS = f"{HERE / 'small.py'}:blobs_problem"

BAD = """
import torch, etascope as es
x = torch.linspace(-1, 1, 32)[:, None]
data = dict(train=(x, x), valid=(x, x))
def mse(m, b): return (m(b[0]) - b[1]).square().mean()
def no_model(): raise RuntimeError("the model is on holiday")
raises = es.Problem(model=no_model, loss=mse, **data)
vector = es.Problem(model=lambda: torch.nn.Linear(1, 1),
                    loss=lambda m, b: (m(b[0]) - b[1]).square(), **data)
def moving():
    made = torch.nn.Linear(1, 1)
    made.start = made.weight.detach().clone()
    return made
def late(m, b):
    if (m.weight - m.start).abs().max() > 0.01: raise RuntimeError("the loss gave up")
    return mse(m, b)
later = es.Problem(model=moving, loss=late, **data)
def batches(seed, epoch):
    for k in range(20):
        yield (x / 0, x) if k == 15 else (x, x)
spoiled = es.Problem(model=lambda: torch.nn.Linear(1, 1), loss=mse, train=batches, valid=(x, x))
"""


def etascope(*words, cwd=None):
    command = [sys.executable, "-m", "etascope.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "study"
    words = ("sweep", BLOBS, "--lrs", "1e-3:1:4", "--lrs", "1e6", "--steps", 40, "--out", out)
    done = etascope(*words, "--optimizer", "sgd")
    assert done.returncode == 0, done.stderr
    assert "Use a learning rate of" in done.stdout
    return out


def test_a_report_drawn_later_shows_what_is_inside(study, tmp_path):
    assert etascope("report", study, "-o", tmp_path / "r.html").returncode == 0
    page = (tmp_path / "r.html").read_text()
    assert 'id="graph-data"' in page
    assert "One step of sgd, down to the operators" in page


def test_show_prints_a_table_and_json_that_agree(study):
    table, text = etascope("show", study), etascope("show", study, "--json")
    assert (table.returncode, text.returncode) == (0, 0)
    document = json.loads(text.stdout, parse_constant=pytest.fail)
    assert document["version"] == 1
    assert document == es.open_study(study).to_dict()
    assert f"Use a learning rate of {document['best']['lr']:g}" in table.stdout
    assert [trial["lr"] for trial in document["trials"]] == [1e-3, 1e-2, 1e-1, 1.0, 1e6]


def test_the_json_has_what_scripts_rest_on(study):
    document = es.open_study(study).to_dict()
    assert set(document) == {
        "version", "study", "problem", "plan", "environment", "best", "finding", "rates", "trials",
    }  # fmt: skip
    for trial in document["trials"]:
        assert set(trial) == {
            "lr", "seed", "target", "steps", "status", "seconds", "verdict", "failure", "final",
            "peak", "series", "skipped",
        }  # fmt: skip
        assert len(trial["series"]["loss"]) >= trial["steps"]
        assert trial["verdict"]["reason"]
    best = next(t for t in document["trials"] if t["lr"] == document["best"]["lr"])
    assert best["final"]["valid"]["examples"] == 100
    assert best["final"]["test"]["examples"] == 60


def test_report_writes_page_plots_and_event_files(study, tmp_path):
    words = ("-o", tmp_path / "a.html", "--plots", tmp_path / "p", "--tensorboard", tmp_path / "tb")
    done = etascope("report", study, *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert list((tmp_path / "p").glob("*.png"))
    assert list((tmp_path / "tb").rglob("*tfevents*"))


def test_problems_lists_what_is_built_in():
    done = etascope("problems")
    assert done.returncode == 0
    assert "mnist-cnn" in done.stdout
    assert "adam-nesterov" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sweep", "mnist-cn"), "did you mean mnist-cnn"),
        (("sweep", BLOBS, "--optimizer", "adamm"), "adamm"),
        (("sweep", BLOBS, "--lrs", "0"), "learning rate is 0.0"),
        (("sweep", BLOBS, "--lrs", "-0.1"), "learning rate is -0.1"),
        (("sweep", BLOBS, "--lrs", "nan"), "learning rate is nan"),
        (("sweep", BLOBS, "--lrs", "0.1,0.10"), "given twice"),
        (("sweep", BLOBS, "--lrs", "fast"), "'fast' is no learning rate"),
        (("sweep", BLOBS, "--lrs", "0.1:0.1:3"), "3 rates cannot all be 0.1"),
        (("sweep", "mine.py"), "such as mine.py:problem"),
        (("sweep", BLOBS, "--steps", "0"), "steps is 0"),
        (("sweep", BLOBS, "--seeds", "0"), "seeds is 0"),
        (("sweep", BLOBS, "--schedule", "cosinus"), "no schedule is called"),
        (("sweep", "mnist-cnn", "--data", "/nonexistent"), "/nonexistent"),
        (("sweep", "mnist-cnn", "--keep-prob", "0"), "keep_prob is 0.0"),
        (("demo", "--steps", "0"), "steps is 0"),
        (("demo", "--lrs", "x"), "'x' is no learning rate"),
    ],
)
def test_wrong_use_is_one_sentence_and_status_2(tmp_path, words, told):
    done = etascope(*words, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("attribute", "told"),
    [
        ("raises", "the model factory raised RuntimeError: the model is on holiday"),
        ("vector", "shape (32, 1); take its mean over the batch"),
        ("nothing", "has no attribute 'nothing'"),
    ],
)
def test_a_problem_that_cannot_work_is_one_sentence_and_status_2(tmp_path, attribute, told):
    (tmp_path / "bad.py").write_text(BAD)
    done = etascope("sweep", f"bad.py:{attribute}", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("attribute", "told"), [("later", "the loss gave up"), ("spoiled", "step 15) at the untrained")]
)
def test_a_study_of_which_no_trial_could_be_trained_is_status_1_and_can_be_read(
    tmp_path, attribute, told
):
    (tmp_path / "bad.py").write_text(BAD)
    words = ("--steps", 20, "--lrs", "0.1,0.2", "--optimizer", "sgd", "--out", "out")
    done = etascope("sweep", f"bad.py:{attribute}", *words, cwd=tmp_path)
    assert done.returncode == 1
    failures = [h.failure for h in es.open_study(tmp_path / "out").trials]
    assert all(f is not None and told in f.message for f in failures)


def test_batches_that_cannot_be_used_are_skipped_where_that_is_asked_for(tmp_path):
    (tmp_path / "bad.py").write_text(BAD)
    words = ("sweep", f"{tmp_path / 'bad.py'}:spoiled", "--lrs", "0.1,0.01", "--steps", 30)
    done = etascope(*words, "--skip-unusable", "--out", tmp_path / "study")
    assert done.returncode == 0, done.stderr
    assert "2 trials skipped batches that could not be used" in " ".join(done.stdout.split())
    assert [h.skipped for h in es.open_study(tmp_path / "study").trials] == [1, 1]


@pytest.mark.parametrize("command", ["show", "report"])
def test_no_study_there_is_one_sentence_and_status_1(tmp_path, command):
    done = etascope(command, tmp_path / "none")
    assert done.returncode == 1
    assert "there is no study in" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_directory_of_another_study_is_status_2(study):
    done = etascope("sweep", BLOBS, "--steps", 41, "--optimizer", "sgd", "--out", study)
    assert done.returncode == 2
    assert "steps 40 instead of 41" in done.stderr


def test_a_data_directory_with_a_truncated_file_names_it(tmp_path):
    for name in os.listdir(MNIST):
        if name.endswith(".gz"):
            shutil.copy(MNIST / name, tmp_path)
    whole = gzip.decompress((tmp_path / "t10k-images-idx3-ubyte.gz").read_bytes())
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole[:5000]))
    done = etascope("sweep", "mnist-cnn", "--data", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "t10k-images-idx3-ubyte.gz" in done.stderr
    assert "5000" in done.stderr


def test_on_a_terminal_every_trial_has_a_live_row(tmp_path):
    """Run under a pseudo-terminal: the display redraws itself there, and says the rate."""
    words = ("sweep", BLOBS, "--lrs", "0.125", "--steps", "300", "--optimizer", "sgd")
    command = [sys.executable, "-m", "etascope.cli", *words, "--out", str(tmp_path / "out")]
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command, stdout=slave, stderr=slave, env={**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    )
    os.close(slave)
    seen = b""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            seen += os.read(master, 65536)
        except OSError:  # the other end is closed
            break
    os.close(master)
    assert process.wait(timeout=10) == 0
    assert b"0.125" in seen
    assert b"/300" in seen
    assert b"time left" in seen
    assert b"\x1b[" in seen


COMMANDS = [("show", "{}"), ("show", "{}", "--json"), ("problems",), ("--help",), ("--version",)]


def written_to(stdout, study, words, encoding="utf-8"):
    command = [sys.executable, "-m", "etascope.cli", *(word.format(study) for word in words)]
    settings = {**os.environ, "PYTHONIOENCODING": encoding}
    with stdout:
        return subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=settings, check=False
        )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full to stand for it")
@pytest.mark.parametrize("words", COMMANDS)
def test_output_on_a_full_disk_is_one_sentence_and_status_1(study, words):
    done = written_to(open("/dev/full", "w"), study, words)  # noqa: SIM115 - closed in there
    assert done.returncode == 1
    assert done.stderr == "etascope: the output cannot be written (No space left on device)\n"


@pytest.mark.parametrize("words", COMMANDS)
def test_a_reader_that_has_gone_is_left_in_silence(study, words):
    reader, writer = os.pipe()
    os.close(reader)
    done = written_to(os.fdopen(writer, "w"), study, words)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("words", COMMANDS)
def test_a_terminal_that_knows_ascii_only_gets_all_it_can_show(study, tmp_path, words):
    with (tmp_path / "shown").open("w") as file:
        done = written_to(file, study, words, "ascii")
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "shown").read_bytes().decode("ascii")
    if "--json" in words:
        assert json.loads(text) == es.open_study(study).to_dict()


def test_a_header_without_horizon_is_one_sentence_and_status_1(study, tmp_path):
    for name in ("study.json", "journal.jsonl", "steps.f64"):
        shutil.copy(study / name, tmp_path)
    header = unseal((tmp_path / "study.json").read_bytes())
    del header["plan"]["steps"]
    (tmp_path / "study.json").write_bytes(seal(header))
    done = etascope("show", tmp_path)
    assert done.returncode == 1
    assert "is damaged: plan has no steps" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_help_and_version():
    assert "sweep" in etascope("--help").stdout
    assert etascope("--version").stdout.strip() == f"etascope {es.__version__}"
    assert etascope("swep").returncode == 2


PAIR = """
import torch
from torch import nn
def net():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.zeros(2, 3)
def broken():
    return nn.Linear(3, 4), torch.zeros(2, 7)
"""


def test_graph_prints_a_tree_and_writes_every_kind_of_file(tmp_path):
    (tmp_path / "pair.py").write_text(PAIR)
    done = etascope("graph", "pair.py:net", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "linear  [2, 4]  16 parameters, 48 FLOP" in done.stdout
    names = ["g.html", "g.svg", "g.png", "g.dot"]
    words = [word for name in names for word in ("-o", name)]
    done = etascope("graph", "pair.py:net", *words, "--tensorboard", "tb", cwd=tmp_path)
    assert done.stdout.split() == [*names, "tb"]
    assert all((tmp_path / name).stat().st_size > 100 for name in [*names])
    done = etascope("graph", BLOBS, "--optimizer", "sgd", cwd=tmp_path)
    assert "train_step" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("pair.py:net", "-o", "g.pdf"), "cannot be drawn as 'g.pdf'"),
        (("pair.py:none",), "has no attribute 'none'"),
        (("pair.py:broken",), "the forward of Linear raised RuntimeError"),
        ((BLOBS, "--optimizer", "adm"), "no optimizer is called 'adm'"),
    ],
)
def test_graph_refuses_in_one_sentence(tmp_path, words, told):
    (tmp_path / "pair.py").write_text(PAIR)
    done = etascope("graph", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py"] in (
        [],
        ["__pycache__"],
    )


def test_a_module_is_no_problem_to_train(tmp_path):
    (tmp_path / "pair.py").write_text(PAIR)
    done = etascope("sweep", "pair.py:net", cwd=tmp_path)
    assert done.returncode == 2
    assert "gives a module and its inputs; it must give a Problem" in done.stderr


def test_callstack_shows_the_way_and_the_bandwidth(tmp_path):
    trace = tmp_path / "trace.json"
    done = etascope("callstack", BLOBS, "--optimizer", "adam-nesterov", "--trace", trace)
    assert done.returncode == 0, done.stderr
    assert "aten::addcdiv_" in done.stdout
    assert "passes over the parameters" in " ".join(done.stdout.split())
    assert json.loads(trace.read_text())["traceEvents"]
    assert etascope("callstack", "--threads", 0).returncode == 2


def test_callstack_works_where_the_standard_error_stream_is_closed():
    command = f"exec {sys.executable} -m etascope.cli callstack {BLOBS} 2>&-"
    assert (
        subprocess.run(command, shell=True, stdout=subprocess.DEVNULL, check=False).returncode == 0
    )


# Finding ----------------------------------------------------------------------------------------


def test_find_prints_the_answer_and_json_and_can_be_drawn(tmp_path):
    words = ("find", BLOBS, "--steps", 40, "--budget", 4, "--out", tmp_path / "found")
    done = etascope(*words)
    assert done.returncode == 0, done.stderr
    assert "Use a learning rate of" in done.stdout
    assert "full trainings, of the 4 allowed" in done.stdout
    assert "at most 4 full trainings of 40 steps" in done.stderr.partition("loss")[0]
    again = etascope(*words, "--json")
    finding = json.loads(again.stdout)
    assert f"{finding['lr']:g}" in done.stdout.replace("e-0", "e-")
    assert finding == {**es.open_study(tmp_path / "found").to_dict()["finding"]}
    shown = etascope("show", tmp_path / "found")
    assert shown.stdout.split() == done.stdout.partition("\n\nThe study")[0].split()
    page = es.report(tmp_path / "found", tmp_path / "found.html").read_text()
    assert f"etascope find {BLOBS} --steps 40 --budget 4.0 --out studies/found" in page
    assert "finding = es.find(" in page
    assert "es.sweep" not in page


OWN = """
import torch, etascope as es
x = torch.linspace(-1, 1, 64)[:, None]
def make_state(lr):
    model = torch.nn.Linear(1, 1)
    return {"model": model, "sgd": torch.optim.SGD(model.parameters(), lr)}
def evaluate(state, batch):
    return (state["model"](batch[0]) - batch[1]).square().mean()
def step(state, batch):
    loss = evaluate(state, batch)
    state["sgd"].zero_grad()
    loss.backward()
    state["sgd"].step()
    return loss
problem = es.Problem.from_step(make_state, step, evaluate, train=(x, 3 * x), valid=(x, 3 * x))
"""


def test_a_problem_that_owns_its_step_is_found_for_from_the_shell(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    done = etascope("find", "own.py:problem", "--steps", 40, "--budget", 4, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Use a learning rate of" in done.stdout


def test_several_optimizers_are_compared(tmp_path):
    done = etascope(
        "find", BLOBS, "--steps", 30, "--budget", 3, "--out", tmp_path / "both",
        "--optimizer", "sgd", "--optimizer", "adam",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Lowest loss:" in done.stdout
    paths = [tmp_path / "both" / name for name in ("sgd", "adam")]
    page = etascope("report", *paths, "-o", tmp_path / "both.html")
    assert page.returncode == 0, page.stderr
    assert "Sensitivity" in (tmp_path / "both.html").read_text()
    wrong = etascope("report", *paths, "--plots", tmp_path)
    assert wrong.returncode == 2
    assert "name one" in wrong.stderr


def test_a_find_that_finds_nothing_is_status_1(tmp_path):
    done = etascope("find", BLOBS, "--steps", 20, "--budget", 0.1, "--out", tmp_path / "none")
    assert done.returncode == 1
    assert "No learning rate can be suggested" in done.stdout
    assert "Traceback" not in done.stderr


def test_range_test_prints_three_rules_and_how_far_to_trust_them():
    done = etascope("range-test", BLOBS, "--steps", 40, "--seeds", 2)
    assert done.returncode == 0, done.stderr
    for words in ("steepest", "valley", "minimum / 10", "let find"):
        assert words in " ".join(done.stdout.split())
    found = json.loads(etascope("range-test", BLOBS, "--steps", 40, "--json").stdout)
    assert len(found["losses"]) == 3
    assert len(found["lrs"]) == 40
