"""The built-in network is the one that the experiment describes."""

import pytest
import torch
from torch import nn

import etascope as es
from etascope.problems.mnist_cnn import MnistCNN
from etascope.randomness import undisturbed


@pytest.fixture(scope="module")
def problem():
    return es.get_problem("mnist-cnn")


def test_shapes_layer_by_layer():
    model, shapes = MnistCNN(), {}
    for name in ("layer1", "layer2", "fc_layer", "dropout", "layer3"):
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    model(torch.rand(2, 28, 28, 1))
    assert shapes == {
        "layer1": (2, 32, 14, 14),
        "layer2": (2, 64, 7, 7),
        "fc_layer": (2, 1024),
        "dropout": (2, 1024),
        "layer3": (2, 10),
    }
    weights = [5 * 5 * 32, 5 * 5 * 32 * 64, 3136 * 1024, 1024 * 10]
    assert sum(p.numel() for p in model.parameters()) == sum(weights) + 32 + 64 + 1024 + 10


def test_weights_are_truncated_normal_and_biases_constant():
    torch.manual_seed(0)
    for parameter in MnistCNN().parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, 0.1))
        else:
            assert float(parameter.detach().abs().max()) <= 0.2
            if parameter.numel() > 5000:
                # A normal cut at two of its σ = 0.1 has a standard deviation of 0.088.
                assert float(parameter.detach().std()) == pytest.approx(0.08796, rel=0.02)


def test_the_network_is_relu_max_pool_and_dropout_where_it_should_be():
    model = MnistCNN(keep_prob=0.8)
    assert model.dropout.p == pytest.approx(0.2)
    images = torch.rand(4, 28, 28, 1, generator=torch.Generator().manual_seed(0))
    plain = images.permute(0, 3, 1, 2)
    for layer in (model.layer1, model.layer2):
        plain = nn.functional.conv2d(plain, layer[0].weight, layer[0].bias, padding="same")
        plain = nn.functional.max_pool2d(plain.relu(), 2)
    dense = (plain.flatten(1) @ model.fc_layer[1].weight.T + model.fc_layer[1].bias).relu()
    logits = dense @ model.layer3.weight.T + model.layer3.bias
    model.eval()
    torch.testing.assert_close(model(images), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.predict(images).sum(1), torch.ones(4))


def test_the_split_is_fixed_and_nothing_overlaps(problem):
    assert len(problem.train[0]) == 55_000
    assert len(problem.valid[0]) == 5_000
    assert len(problem.test[0]) == 10_000
    assert problem.train[0].shape[1:] == (28, 28, 1)
    assert float(problem.train[0].min()) == 0.0
    assert float(problem.train[0].max()) == 1.0
    joined = torch.cat([problem.valid[1], problem.train[1]])
    assert torch.bincount(joined).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip


def test_one_step_of_the_update_lowers_the_loss_of_its_batch(problem):
    from etascope.plan import Plan

    with undisturbed(torch.device("cpu")):
        model = problem.make_model(0)
        optimizer = Plan(steps=1, optimizer="sgd").make_optimizer(model, 1e-4)
        batch = next(problem.batches(0, 0))
        model.eval()
        before = problem.loss(model, batch)
        before.backward()
        optimizer.step()
        assert float(problem.loss(model, batch).detach()) < float(before.detach())


@pytest.mark.parametrize("keep_prob", [0, -0.1, 1.5, float("nan")])
def test_keep_prob_must_be_a_share(keep_prob):
    with pytest.raises(es.UsageError, match="keep_prob"):
        es.get_problem("mnist-cnn", keep_prob=keep_prob)


def test_a_directory_without_the_files_is_one_sentence(tmp_path):
    with pytest.raises(es.DataError, match="train-images-idx3-ubyte"):
        es.get_problem("mnist-cnn", data=tmp_path)
