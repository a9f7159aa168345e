"""What a step is said to run, against what optimizers are known to do."""

import copy
import json

import pytest
import torch
from small import blobs_problem

import etascope as es
from etascope.errors import StudyError, UsageError
from etascope.inspection.callstack import callstack, frames
from etascope.inspection.traffic import TrafficLog, copy_bandwidth
from etascope.optim.registry import OPTIMIZERS

MARGIN = 64  # bytes for a tensor's count of steps: eight tensors of four bytes, read and written


def test_the_chain_leads_from_step_to_the_fused_kernel():
    stack = callstack(blobs_problem(), "adam", threads=1)
    way = [frame.name for frame in frames(stack.root)]
    assert way[0] == "wrapper"
    assert way.index("step") < way.index("_update_fused") < way.index("aten::_fused_adam_")
    step = next(frame for frame in frames(stack.root) if frame.name == "step")
    assert step.where.startswith("etascope/optim/adam.py:")


def test_fused_adam_reads_four_tensors_a_parameter_and_writes_three():
    stack = callstack(blobs_problem(), "adam", threads=1)
    fused = [call for call in stack.traffic if call.operator == "aten::_fused_adam_"]
    read, written = sum(c.read for c in fused), sum(c.written for c in fused)
    assert 4 * stack.parameter_bytes <= read <= 4 * stack.parameter_bytes + MARGIN
    assert written == 3 * stack.parameter_bytes


def test_sgd_reads_two_tensors_a_parameter_and_writes_one():
    stack = callstack(blobs_problem(), "sgd", threads=1)
    assert sum(call.read for call in stack.traffic) == 2 * stack.parameter_bytes
    assert sum(call.written for call in stack.traffic) == stack.parameter_bytes
    assert stack.passes == 3


def test_the_nesterov_branch_shows_its_own_operators():
    names = {call.operator for call in callstack(blobs_problem(), "adam-nesterov").traffic}
    assert "aten::_fused_adam_" not in names
    assert {"aten::lerp_", "aten::addcmul_", "aten::sqrt", "aten::addcdiv_"} <= names


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_is_described_down_to_all_its_traffic(optimizer):
    problem = blobs_problem()
    stack = callstack(problem, optimizer, threads=1)
    assert stack.passes >= 3  # a gradient is read, a parameter read and written
    assert stack.seconds > 0
    assert stack.bytes == sum(call.read + call.written for call in stack.traffic)
    for frame in frames(stack.root):
        assert bool(frame.traffic) != bool(frame.children)
        assert all(child.seconds <= frame.seconds for child in frame.children)


def test_the_log_counts_what_operators_read_and_write():
    a, b = torch.ones(100), torch.ones(100)
    with TrafficLog() as log:
        a.add_(b)
        a.copy_(b)
        a.view(10, 10)
        torch.empty(50)
        torch.mul(a, b)
        a.add_(a)
    # What a mode is handed was detached before, which moves nothing.
    moved = [tuple(call) for call in log.calls if call.operator != "aten::detach"]
    assert moved == [
        ("aten::add_", 800, 400),
        ("aten::copy_", 400, 400),
        ("aten::view", 0, 0),
        ("aten::empty", 0, 0),
        ("aten::mul", 800, 400),
        ("aten::add_", 400, 400),
    ]


def test_copying_has_a_bandwidth():
    assert copy_bandwidth(1 << 20, torch.device("cpu")) > 0


def test_nothing_of_the_caller_is_changed(capfd):
    problem = blobs_problem()
    model = problem.make_model(0)
    problem = blobs_problem(model=model)
    before = copy.deepcopy(model.state_dict()), torch.get_rng_state(), torch.get_num_threads()
    callstack(problem, "adam", threads=2)
    state, random, threads = before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert capfd.readouterr() == ("", "")


def test_a_trace_is_json_with_the_operators_in_it(tmp_path):
    target = tmp_path / "new" / "trace.json"
    callstack(blobs_problem(), "adam", trace=target)
    events = json.loads(target.read_text())["traceEvents"]
    assert "aten::_fused_adam_" in {event.get("name") for event in events}


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="no optimizer is called 'adamm'; did you mean"):
        callstack(blobs_problem(), "adamm")
    with pytest.raises(UsageError, match="threads is 0"):
        callstack(blobs_problem(), threads=0)
    with pytest.raises(StudyError, match=r"cannot write the trace to .*; name another file"):
        callstack(blobs_problem(), trace=tmp_path)
    with pytest.raises(UsageError, match="loss raised RuntimeError: boom"):
        callstack(blobs_problem(loss=lambda model, batch: exec('raise RuntimeError("boom")')))


def test_an_optimizer_that_needs_a_closure_is_refused():
    with pytest.raises(UsageError, match="optimizer raised TypeError"):
        callstack(blobs_problem(), lambda m, lr: torch.optim.LBFGS(m.parameters(), lr))


def test_a_factory_is_known_by_its_class():
    def make(model, lr):
        return torch.optim.SGD(model.parameters(), lr)

    assert callstack(blobs_problem(), make).optimizer == "SGD"


def test_the_built_in_experiment_goes_seven_times_over_its_weights():
    stack = callstack(es.get_problem("mnist-cnn"), "adam", threads=1)
    assert stack.parameters == 3_274_634
    assert round(stack.passes, 3) == 7
