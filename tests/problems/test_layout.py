"""The order of images in memory changes where numbers stand, not what they are."""

import copy

import pytest
import torch
from torch import nn

from etascope.problems.layout import with_channels_last


def network(pool):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        pool,
        nn.Conv2d(4, 6, 3, padding=1),
        pool,
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.LazyLinear(3),
    ).double()


def gradients(model, images):
    model(images).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(2)],
    ids=lambda pool: type(pool).__name__,
)
def test_gradients_are_those_of_the_model_as_it_was(pool):
    images = torch.randn(5, 2, 17, 17, dtype=torch.float64)
    plain = network(pool)
    plain(images)  # gives the last layer its shape
    ours = gradients(with_channels_last(copy.deepcopy(plain)), images)
    for name, theirs in gradients(plain, images).items():
        torch.testing.assert_close(ours[name], theirs, rtol=1e-12, atol=1e-15)


def test_gradients_reach_a_pooling_as_its_output_left_it():
    plain = network(nn.MaxPool2d(2))
    plain(torch.randn(1, 2, 17, 17, dtype=torch.float64))  # gives the last layer its shape
    model = with_channels_last(plain)
    seen = []
    model[4].register_forward_hook(lambda m, i, out: out.register_hook(seen.append) and None)
    model(torch.randn(5, 2, 17, 17, dtype=torch.float64)).sum().backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_images_without_a_batch_and_poolings_that_return_indices_are_left_alone():
    indices = nn.MaxPool2d(2, return_indices=True)
    image = torch.randn(1, 8, 8, requires_grad=True)
    model = with_channels_last(nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), indices))
    pooled, where = model(image)
    pooled.sum().backward()
    assert pooled.shape == where.shape == (2, 1, 1)
    assert image.grad is not None
