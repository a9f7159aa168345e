"""What a captured graph holds, against what ran and against counts made another way."""

import copy
import json
from collections import Counter, OrderedDict
from contextlib import contextmanager

import nets
import pytest
import torch
from small import blobs_problem
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import etascope as es
from etascope.errors import UsageError
from etascope.inspection.capture import capture, capture_problem
from etascope.inspection.graph import (
    Graph,
    count_of,
    flops_of,
    inside,
    parameters_of,
    parent,
    to_json,
)
from etascope.optim.registry import OPTIMIZERS
from etascope.schema import decode

CASES = nets.cases()


def lines(graph: Graph) -> list[str]:
    """A graph as readable text: each node with its function and what it reads."""
    return [
        f"{n.name} = {n.op}({', '.join(e.source for e in n.inputs)})"
        + "".join(f" {p.name}" for p in n.parameters)
        for n in graph.nodes
    ]


@pytest.fixture(scope="module")
def mnist() -> Graph:
    return capture_problem(es.get_problem("mnist-cnn"))


GOLDEN = {
    "residual": [
        "input = input()",
        "0/conv = conv2d(input) 0.conv.weight 0.conv.bias",
        "0/norm = batch_norm(0/conv) 0.norm.weight 0.norm.bias",
        "0/add = add(input, 0/norm)",
        "0/relu = relu(0/add)",
        "1/conv = conv2d(0/relu) 1.conv.weight 1.conv.bias",
        "1/norm = batch_norm(1/conv) 1.norm.weight 1.norm.bias",
        "1/add = add(0/relu, 1/norm)",
        "1/relu = relu(1/add)",
        "output = output(1/relu)",
    ],
    "shared": [
        "input = input()",
        "layer = linear(input) layer.weight layer.bias",
        "layer_1 = linear(layer) layer.weight layer.bias",
        "matmul = matmul(layer_1) layer.weight",
        "output = output(matmul)",
    ],
    "branching": [
        "input = input()",
        "sum = sum(input)",
        "gt = gt(sum)",
        "bool = bool(gt)",
        "high = linear(input) high.weight high.bias",
        "output = output(high)",
    ],
    "named": [
        "input_tokens = input()",
        "input_mask = input()",
        "embed = embedding(input_tokens) embed.weight",
        "mul = mul(embed, input_mask)",
        "mean = mean(mul)",
        "output_hidden = output(mul)",
        "output_pooled = output(mean)",
    ],
    "lstm": [
        "input = input()",
        "lstm/zeros = zeros()",
        "lstm/zeros_1 = zeros()",
        "lstm/lstm = lstm(input, lstm/zeros, lstm/zeros_1) lstm.weight_ih_l0 lstm.weight_hh_l0"
        " lstm.bias_ih_l0 lstm.bias_hh_l0",
        "getitem = getitem(lstm/lstm)",
        "head = linear(getitem) head.weight head.bias",
        "output = output(head)",
    ],
    "attention": [
        "input = input()",
        "attention/transpose = transpose(input)",
        "attention/multi_head_attention_forward = multi_head_attention_forward(attention/transpose)"
        " attention.in_proj_weight attention.in_proj_bias attention.out_proj.weight"
        " attention.out_proj.bias",
        "attention/transpose_1 = transpose(attention/multi_head_attention_forward)",
        "output = output(attention/transpose_1)",
    ],
    # What is written through a view is what the sum reads.
    "in place": [
        "input = input()",
        "zeros = zeros()",
        "setitem = setitem(zeros, input)",
        "getitem = getitem(setitem)",
        "add = add(getitem, input)",
        "sum = sum(add)",
        "output = output(sum)",
    ],
    "constant": [
        "input = input()",
        "constant = constant()",
        "add = add(input, constant)",
        "output = output(add)",
    ],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_network_is_the_graph_that_its_code_says(name):
    module, inputs = CASES[name]
    assert lines(capture(module, inputs)) == GOLDEN[name]


def test_mnist_cnn_reads_like_its_description(mnist):
    top = [n.name for n in mnist.nodes if "/" not in n.name]
    groups = [g.name for g in mnist.groups if not parent(g.name)]
    assert top == ["input", "target", "permute", "dropout", "layer3"]
    assert groups == ["layer1", "layer2", "fc_layer", "loss", "prediction", "train_step"]
    forward = [line for line in lines(mnist) if not line.startswith("train_step")]
    assert forward == [
        "input = input()",
        "target = input()",
        "permute = permute(input)",
        "layer1/conv2d = conv2d(permute) layer1.0.weight layer1.0.bias",
        "layer1/relu = relu(layer1/conv2d)",
        "layer1/max_pool2d = max_pool2d(layer1/relu)",
        "layer2/conv2d = conv2d(layer1/max_pool2d) layer2.0.weight layer2.0.bias",
        "layer2/relu = relu(layer2/conv2d)",
        "layer2/max_pool2d = max_pool2d(layer2/relu)",
        "fc_layer/flatten = flatten(layer2/max_pool2d)",
        "fc_layer/linear = linear(fc_layer/flatten) fc_layer.1.weight fc_layer.1.bias",
        "fc_layer/relu = relu(fc_layer/linear)",
        "dropout = dropout(fc_layer/relu)",
        "layer3 = linear(dropout) layer3.weight layer3.bias",
        "loss/cross_entropy = cross_entropy(layer3, target)",
        "prediction/softmax = softmax(layer3)",
    ]


def test_shapes_and_counts_of_mnist_cnn_are_those_of_its_formulas(mnist):
    nodes = {node.name: node for node in mnist.nodes}
    assert nodes["layer1/max_pool2d"].outputs[0].shape == (50, 32, 14, 14)
    assert nodes["layer2/max_pool2d"].outputs[0].shape == (50, 64, 7, 7)
    assert nodes["layer1/conv2d"].flops == 2 * 50 * 28 * 28 * 32 * 25
    assert nodes["layer2/conv2d"].flops == 2 * 50 * 14 * 14 * 64 * 32 * 25
    assert nodes["fc_layer/linear"].flops == 2 * 50 * 3136 * 1024
    assert nodes["layer3"].flops == 2 * 50 * 1024 * 10
    held = {group.name: count_of(group.parameters) for group in mnist.groups}
    assert held["layer1"] == 32 * 25 + 32
    assert held["layer2"] == 64 * 32 * 25 + 64
    assert held["train_step/adam"] == count_of(parameters_of(mnist.nodes)) == 3_274_634


def test_the_training_step_goes_back_through_the_network_and_into_adam(mnist):
    nodes = {node.name: node for node in mnist.nodes}
    back = [
        node.name.removeprefix("train_step/gradients/").split("/")[0]
        for node in inside(mnist, "train_step/gradients")
    ]
    assert list(dict.fromkeys(back)) == [
        "loss", "layer3", "dropout", "fc_layer", "layer2", "layer1",
    ]  # fmt: skip
    last = nodes["train_step/adam/fused_adam"]
    sources = [edge.source for edge in last.inputs]
    for layer in ("layer1/conv2d_backward", "layer2/conv2d_backward", "layer3"):
        assert f"train_step/gradients/{layer}" in sources
    assert "train_step/adam/exp_avg" in sources
    assert last.operators == ("aten._fused_adam_",)
    # The gradient by the weights and that by the input cost a product of the forward's size each;
    # the first layer's input needs none.
    convolution = nodes["train_step/gradients/layer2/conv2d_backward"]
    assert convolution.flops == 2 * nodes["layer2/conv2d"].flops
    assert nodes["train_step/gradients/layer1/conv2d_backward"].flops == (
        nodes["layer1/conv2d"].flops
    )


class Log(TorchDispatchMode):
    """What ran, written down by nobody of ours."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func._overloadpacket))
        return func(*args, **(kwargs or {}))


@contextmanager
def unfused():
    """Without the kernels that compute several operators at once."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = True


def forward(module, inputs):
    return module(**inputs) if isinstance(inputs, dict) else module(inputs)


@pytest.mark.parametrize("name", CASES)
def test_every_operator_of_the_forward_is_in_the_graph_once(name):
    module, inputs = CASES[name]
    graph = capture(module, inputs)
    twin = copy.deepcopy(module)
    with unfused(), Log() as log:
        forward(twin, inputs)
    recorded = Counter(operator for node in graph.nodes for operator in node.operators)
    ran = Counter(log.names)
    if name == "scripted":  # its interpreter detaches more often the first times it runs
        recorded["aten.detach"] = ran["aten.detach"] = 0
    assert recorded == ran


@pytest.mark.parametrize("name", CASES)
def test_totals_are_those_of_an_independent_count(name):
    module, inputs = CASES[name]
    graph = capture(module, inputs)
    twin = copy.deepcopy(module)
    with unfused(), FlopCounterMode(display=False) as counter:
        forward(twin, inputs)
    assert flops_of(graph.nodes) == counter.get_total_flops()
    ran = {id(p) for p in module.parameters()}
    if name == "branching":  # the branch that was not taken is not there
        ran = {id(p) for p in module.high.parameters()}
    shapes = {p for p in module.parameters() if id(p) in ran}
    assert count_of(parameters_of(graph.nodes)) == sum(p.numel() for p in shapes)


@pytest.mark.parametrize("name", CASES)
def test_edges_lead_from_earlier_nodes_and_groups_hold_something(name):
    graph = capture(*CASES[name])
    seen = set()
    for node in graph.nodes:
        assert {edge.source for edge in node.inputs} <= seen
        assert node.name not in seen
        seen.add(node.name)
    for group in graph.groups:
        assert inside(graph, group.name)
        assert not parent(group.name) or parent(group.name) in {g.name for g in graph.groups}


def test_the_other_branch_is_taken_on_other_data():
    module, _ = CASES["branching"]
    assert "low = linear(input) low.weight low.bias" in lines(capture(module, -torch.ones(1, 2)))


def test_a_lazy_module_is_captured_with_the_parameters_it_makes():
    module = nn.LazyLinear(4)
    graph = capture(module, torch.ones(2, 3))
    assert count_of(parameters_of(graph.nodes)) == 4 * 3 + 4
    assert isinstance(module.weight, nn.UninitializedParameter)


def test_leaving_the_process_is_one_sentence():
    class Leaving(nn.Module):
        def forward(self, x):
            raise SystemExit(3)

    with pytest.raises(UsageError, match="the forward of Leaving raised SystemExit: 3"):
        capture(Leaving(), torch.ones(1))


def test_a_slash_in_a_name_opens_no_scope():
    graph = capture(nn.Sequential(OrderedDict({"a/b": nn.Linear(2, 2)})), torch.ones(1, 2))
    assert [node.name for node in graph.nodes] == ["input", "a.b", "output"]


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_caller_is_changed(training):
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()).train(training)
    inputs, wrong = torch.randn(4, 3), torch.randn(4, 7)
    before = copy.deepcopy(module.state_dict()), inputs.clone(), torch.get_rng_state()
    enabled = torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()
    capture(module, inputs)
    with pytest.raises(UsageError, match="raised RuntimeError"):
        capture(module, wrong)
    state, given, random = before
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert torch.equal(inputs, given)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(m.training == training for m in module.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert all(p.grad is None for p in module.parameters())
    assert enabled == (torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_updates_every_parameter_in_the_graph(optimizer):
    graph = capture_problem(blobs_problem(), optimizer)
    update = inside(graph, f"train_step/{optimizer}")
    trained = {p.name for n in inside(graph, "train_step/gradients") for p in n.parameters}
    assert {p.name for node in update for p in node.parameters} == trained
    assert not any(node.op == "constant" for node in update if node.outputs)


def test_the_nesterov_branch_runs_other_functions_than_the_fused_one():
    operators = {
        name: {o for n in inside(capture_problem(blobs_problem(), name), f"train_step/{name}")
               for o in n.operators}
        for name in ("adam", "adam-nesterov")
    }  # fmt: skip
    assert "aten._fused_adam_" in operators["adam"]
    assert "aten._fused_adam_" not in operators["adam-nesterov"]


def test_a_factory_names_its_update_by_its_class():
    graph = capture_problem(blobs_problem(), lambda m, lr: torch.optim.SGD(m.parameters(), lr))
    assert any(group.name == "train_step/SGD" for group in graph.groups)


def test_what_leaves_torch_says_so():
    class Leaving(nn.Module):
        def forward(self, x):
            return x + torch.from_numpy(x.detach().numpy() * 2)

    nodes = {node.op: node for node in capture(Leaving(), torch.ones(2)).nodes}
    assert "cannot be followed" in nodes["numpy"].note
    assert nodes["add"].inputs[1].source != "input"


@pytest.mark.parametrize("name", CASES)
def test_a_graph_survives_its_json(name):
    graph = capture(*CASES[name])
    assert decode(Graph, json.loads(json.dumps(to_json(graph)))) == graph


@pytest.mark.parametrize(
    ("module", "inputs", "words"),
    [
        ("net", torch.ones(1), "is a str, no nn.Module"),
        (nn.Linear(2, 2), "text", "the forward of Linear raised TypeError"),
        (nn.Linear(2, 2), {"wrong": torch.ones(2)}, "the forward of Linear raised TypeError"),
        (nn.Linear(2, 2), (), "the forward of Linear raised TypeError"),
        (nn.Identity(), torch.ones(1), "Identity computes nothing with tensors"),
    ],
)
def test_bad_input_is_one_sentence(module, inputs, words):
    with pytest.raises(UsageError, match=words) as raised:
        capture(module, inputs)
    assert "\n" not in str(raised.value)


def test_a_tensor_given_twice_is_one_input():
    x = torch.zeros(2, 5, 8)
    graph = capture(torch.nn.MultiheadAttention(8, 2), (x, x, x))
    assert [node.name for node in graph.nodes if node.op == "input"] == ["input"]
    assert graph.nodes[1].inputs[0].source == "input"
