"""The C++ frames, from gdb where it is installed, and from what it is known to print."""

import shutil
from pathlib import Path

import pytest

from etascope.errors import UsageError
from etascope.inspection import native
from etascope.inspection.native import native_stacks, parse_stacks, readable

PRINTED = """
Thread 2 "python" hit Breakpoint 3, 0x00007 in void at::internal::invoke_parallel<...> ()
@thread 2
#0  0x00007fffe8 in void at::internal::invoke_parallel<at::parallel_for<at::native::(anonymous \
namespace)::adam_fused_step_impl<float, (at::native::ADAM_MODE)0>(at::Tensor const&)::{lambda()#1}>\
(long)::{lambda()#1}>(long) [clone ._omp_fn.0] () from /x/torch/lib/libtorch_cpu.so
#1  0x00007ffff6 in gomp_thread_start () from /x/torch/lib/libgomp.so.1
#2  0x00007ffff7 in start_thread (arg=...) at ./nptl/pthread_create.c:442
Thread 1 "python" hit Temporary breakpoint 4, 0x00007 in at::native::_fused_adam_kernel_cpu_ ()
@thread 1
#0  0x00007fffe2 in at::native::_fused_adam_kernel_cpu_(c10::ArrayRef<at::Tensor>) () from /x/l.so
#1  _PyEval_EvalFrameDefault (tstate=...) at Python/ceval.c:4769
#2  0x0000555555 in _start ()
"""


def test_stacks_run_from_the_threads_start_to_the_kernel():
    caller, worker = parse_stacks(PRINTED)
    assert (caller.thread, worker.thread) == ("caller", "worker")
    assert [frame.name for frame in caller.frames] == [
        "_start",
        "_PyEval_EvalFrameDefault",
        "at::native::_fused_adam_kernel_cpu_",
    ]
    assert [frame.name for frame in worker.frames] == [
        "start_thread",
        "gomp_thread_start",
        "at::native::adam_fused_step_impl, parallel body",
    ]
    assert worker.frames[0].where == "pthread_create.c:442"
    assert caller.frames[-1].where == "l.so"


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("at::_ops::_fused_adam_::call(c10::ArrayRef<at::Tensor>, double) ()", None),
        (
            "_ZN2at6native12_GLOBAL__N_14stepIN3c104HalfEEEvS_._omp_fn.0",
            "at::native::step::c10::Half",
        ),
    ],
)
def test_symbols_are_readable(symbol, name):
    told = readable(symbol)
    assert told == ("at::_ops::_fused_adam_::call" if name is None else f"{name}, parallel body")


def test_without_gdb_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"needs gdb, which is not installed; .* install gdb"):
        native_stacks("mnist-cnn")


def test_one_thread_is_refused(monkeypatch):
    monkeypatch.setattr(native.shutil, "which", lambda name: "gdb")
    with pytest.raises(UsageError, match="threads is 1"):
        native_stacks("mnist-cnn", threads=1)


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_the_native_stack_of_adam_ends_in_torchs_adam_kernel():
    caller, worker = native_stacks("mnist-cnn", "adam")
    names = [frame.name for frame in caller.frames]
    dispatched = names.index("at::_ops::_fused_adam_::call")
    assert names.index("at::native::_fused_adam_kernel_cpu_") > dispatched
    assert names[-1] == worker.frames[-1].name == "at::native::adam_fused_step_impl, parallel body"
    assert any("clone" in frame.name for frame in worker.frames[:1])


def test_a_process_that_splits_nothing_has_no_stacks():
    told = "[Inferior 1 (process 7) exited normally]\n@thread 0\n@thread 0\n"
    assert parse_stacks(told) == []


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_a_step_of_tiny_tensors_is_split_over_no_threads():
    assert native_stacks(f"{Path(__file__).parents[1] / 'small.py'}:line_problem", "sgd") == []
