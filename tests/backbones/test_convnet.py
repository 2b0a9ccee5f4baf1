"""The ConvNet against the plain one."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from dam_lightning.backbones import Backbone, ConvNet
from tests.reference import convnet as reference

NORMS = {
    "instancenorm": "instance",
    "groupnorm": "group",
    "layernorm": "layer",
    "batchnorm": "batch",
    "none": "none",
}
ACTIVATIONS = {
    "relu": "relu",
    "leakyrelu": "leaky_relu",
    "sigmoid": "sigmoid",
    "swish": "swish",
}
POOLINGS = {"avgpool": "avg", "maxpool": "max", "none": "none"}


def pictures(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def pair(
    shape: tuple[int, int, int],
    width: int = 8,
    depth: int = 2,
    norm: str = "instancenorm",
    activation: str = "relu",
    pooling: str = "avgpool",
) -> tuple[ConvNet, reference.ConvNet]:
    """The two networks with the same weights."""
    options: dict[str, Any] = {"norm": norm, "activation": activation, "pooling": pooling}
    ours = ConvNet(shape, 5, width, depth, **options).double()
    theirs = reference.ConvNet(
        shape[0],
        5,
        width,
        depth,
        shape[1:],
        norm=NORMS[norm],
        activation=ACTIVATIONS[activation],
        pooling=POOLINGS[pooling],
    ).double()
    for parameter in theirs.parameters():  # norms start at 1 and 0, which would hide a mix-up
        torch.nn.init.normal_(parameter, std=0.5)
    reference.copy_parameters(theirs, ours)
    return ours, theirs


def assert_equal(ours: ConvNet, theirs: reference.ConvNet, images: Tensor) -> None:
    x, y = images.clone().requires_grad_(), images.clone().requires_grad_()
    torch.testing.assert_close(ours.features(x), theirs.embed(y), atol=1e-9, rtol=1e-9)
    mine, plain = ours(x), theirs(y)
    torch.testing.assert_close(mine, plain, atol=1e-9, rtol=1e-9)
    gradients = (
        torch.autograd.grad(scores.square().sum(), [inputs, *network.parameters()])
        for scores, inputs, network in ((mine, x, ours), (plain, y, theirs))
    )
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("classes", "depth", "size", "count"),
    [
        (10, 3, 32, 320_010),
        (100, 3, 32, 504_420),
        (200, 4, 64, 857_160),
        (7, 4, 64, 461_703),
        (5, 4, 64, 457_605),
        (65, 4, 64, 580_545),
    ],
)
def test_parameter_counts(classes: int, depth: int, size: int, count: int) -> None:
    network = ConvNet((3, size, size), classes, depth=depth)
    assert sum(p.numel() for p in network.parameters()) == count
    assert network.feature_dim == 2048


def test_the_defaults_are_the_papers() -> None:
    explicit = {"norm": "instancenorm", "activation": "relu", "pooling": "avgpool"}
    first, second = ConvNet((3, 32, 32), 10), ConvNet((3, 32, 32), 10, 128, 3, **explicit)
    assert str(first) == str(second)


@pytest.mark.parametrize(
    ("norm", "activation", "pooling"), list(product(NORMS, ACTIVATIONS, POOLINGS))
)
def test_every_option_equals_the_plain_network(norm: str, activation: str, pooling: str) -> None:
    ours, theirs = pair((3, 8, 8), norm=norm, activation=activation, pooling=pooling)
    images = pictures(3, 3, 8, 8)
    assert_equal(ours, theirs, images)
    ours.eval()
    theirs.eval()
    assert_equal(ours, theirs, images)


@pytest.mark.parametrize(
    ("shape", "depth", "feature_dim"),
    [
        ((1, 28, 28), 3, 8 * 4 * 4),  # treated as 32x32
        ((1, 28, 28), 1, 8 * 16 * 16),
        ((3, 28, 28), 3, 8 * 3 * 3),
        ((3, 64, 64), 4, 8 * 4 * 4),
        ((3, 17, 23), 2, 8 * 4 * 5),
        ((1, 13, 9), 2, 8 * 4 * 3),
        ((2, 8, 16), 3, 8 * 1 * 2),
    ],
)
@pytest.mark.parametrize("norm", ["instancenorm", "layernorm"])
def test_every_size_equals_the_plain_network(
    shape: tuple[int, int, int], depth: int, feature_dim: int, norm: str
) -> None:
    ours, theirs = pair(shape, depth=depth, norm=norm)
    assert ours.feature_dim == feature_dim
    assert ours.features(pictures(2, *shape)).shape == (2, feature_dim)
    assert ours(pictures(2, *shape)).shape == (2, 5)
    assert_equal(ours, theirs, pictures(2, *shape))


def test_scores_are_the_classifier_on_the_features() -> None:
    network, images = ConvNet((3, 8, 8), 5, 8, 2), pictures(2, 3, 8, 8).float()
    assert isinstance(network, Backbone)
    assert torch.equal(network(images), network.classifier(network.features(images)))


def test_inputs_are_left_as_they_are() -> None:
    network, images = ConvNet((3, 8, 8), 5, 8, 2, norm="none"), pictures(2, 3, 8, 8).float()
    before = images.clone()
    network(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("shape", "depth"), [((3, 4, 4), 3), ((3, 32, 32), 6), ((3, 64, 4), 3), ((1, 4, 4), 4)]
)
def test_images_too_small_for_the_depth_are_refused(
    shape: tuple[int, int, int], depth: int
) -> None:
    message = f"images of {shape[1]}x{shape[2]} are too small for depth {depth}"
    with pytest.raises(ValueError, match=message):
        ConvNet(shape, 5, 8, depth)
    assert ConvNet(shape, 5, 8, depth - 1).feature_dim >= 8
    ConvNet(shape, 5, 8, depth, pooling="none")  # nothing halves them


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "spectral"}, "norm must be one of instancenorm, .*, none, got 'spectral'"),
        ({"activation": "gelu"}, "activation must be one of relu, .*, swish, got 'gelu'"),
        ({"pooling": "sum"}, "pooling must be one of avgpool, maxpool, none, got 'sum'"),
        ({"width": 0}, "must be at least 1"),
        ({"depth": 0}, "must be at least 1"),
        ({"num_classes": 0}, "must be at least 1"),
        ({"image_shape": (0, 8, 8)}, "must be at least 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvNet(**{"image_shape": (3, 8, 8), "num_classes": 5, "width": 8, "depth": 2, **options})
