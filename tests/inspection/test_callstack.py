"""What a step is said to run, against what optimizers are known to do."""

import copy
import json

import pytest
import torch
from small import blobs_problem

import etascope as es
from etascope.errors import StudyError, UsageError
from etascope.inspection.callstack import callstack
from etascope.inspection.frames import frames
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


class Stepping(torch.optim.Optimizer):
    """An optimizer that takes the steps that it is told."""

    def __init__(self, model, update):
        super().__init__(model.parameters(), {})
        self.update, self.count = update, 0

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                self.update(p, self.count)


def stepping(update):
    return callstack(blobs_problem(), lambda model, lr: Stepping(model, update), threads=1)


def test_an_operator_of_the_users_own_is_measured():
    library = torch.library.Library("etascope_test", "FRAGMENT")
    library.define("descend_(Tensor(a!) parameter, Tensor gradient) -> ()")
    library.impl("descend_", lambda p, g: p.data.numpy().__isub__(g.numpy()) is None or None, "CPU")
    stack = stepping(lambda p, count: torch.ops.etascope_test.descend_(p, p.grad))
    assert {call.operator for call in stack.traffic} == {"etascope_test::descend_"}
    assert stack.passes == 3


def test_an_optimizer_of_which_no_bytes_can_be_told_is_refused():
    with pytest.raises(UsageError, match="a step of Stepping runs no operator of torch"):
        stepping(lambda p, count: None)
    with pytest.raises(UsageError, match="two steps of Stepping in a row ran different operators"):
        stepping(lambda p, count: p.mul_(0.9) if count % 2 else p.add_(1).clamp_(-9, 9))
    with pytest.raises(UsageError, match="the optimizer factory returned a NoneType"):
        callstack(blobs_problem(), lambda model, lr: None)


def test_a_profiler_of_the_callers_own_keeps_what_it_has_seen():
    with torch.profiler.profile() as mine:
        torch.ones(3).add_(1)
        with pytest.raises(UsageError, match="profiler is running already"):
            callstack(blobs_problem())
    assert "aten::add_" in {event.name for event in mine.events()}
    assert not torch.autograd._profiler_enabled()


def test_the_log_counts_what_operators_read_and_write():
    a, b = torch.ones(100), torch.ones(100)
    with TrafficLog() as log:
        a.add_(b)
        a.copy_(b)
        a.view(10, 10)
        torch.empty(50)
        torch.mul(a, b)
        a.add_(a)
        torch._foreach_copy_([a], [b])
    # What a mode is handed was detached before, which moves nothing.
    moved = [tuple(call) for call in log.calls if call.operator != "aten::detach"]
    assert moved == [
        ("aten::add_", 800, 400),
        ("aten::copy_", 400, 400),
        ("aten::view", 0, 0),
        ("aten::empty", 0, 0),
        ("aten::mul", 800, 400),
        ("aten::add_", 400, 400),
        ("aten::_foreach_copy_", 400, 400),
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
    kernel = next(event for event in events if event.get("name") == "aten::_fused_adam_")
    assert [16, 2] in kernel["args"]["Input Dims"][0]


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
    with pytest.raises(UsageError, match="LBFGS needs a closure"):
        callstack(blobs_problem(), lambda m, lr: torch.optim.LBFGS(m.parameters(), lr))


def test_a_factory_is_known_by_its_class():
    def make(model, lr):
        return torch.optim.SGD(model.parameters(), lr)

    assert callstack(blobs_problem(), make).optimizer == "SGD"


def test_the_built_in_experiment_goes_seven_times_over_its_weights():
    stack = callstack(es.get_problem("mnist-cnn"), "adam", threads=1)
    assert stack.parameters == 3_274_634
    assert round(stack.passes, 3) == 7
