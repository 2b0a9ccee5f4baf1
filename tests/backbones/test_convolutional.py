"""AlexNet, VGG11 and ResNet18 against the same networks spelt out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dam_lightning.backbones import VGG11, AlexNet, Backbone, ResNet18, build_backbone
from dam_lightning.backbones.group_norm import GroupNorm
from dam_lightning.backbones.layer_norm import LayerNorm
from tests.backbones import plain

POOLED = {"downsampling": "avgpool"}
Plain = Callable[[nn.Module, Tensor], plain.Plain]
RESNET: Plain = partial(plain.resnet18, pooled=False)
RESNET_POOLED: Plain = partial(plain.resnet18, pooled=True)
NETWORKS: list[tuple[type[Any], dict[str, Any]]] = [
    (AlexNet, {}),
    (VGG11, {}),
    (ResNet18, {}),
    (ResNet18, POOLED),
]


def pictures(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "options", "count", "feature_dim"),
    [
        ("AlexNet", {}, 1_872_202, 3072),
        ("VGG11", {}, 9_231_114, 512),
        ("VGG11", {"norm": "batchnorm"}, 9_231_114, 512),
        ("VGG11", {"norm": "none"}, 9_225_610, 512),
        ("ResNet18", {}, 11_173_962, 512),
        ("ResNet18", POOLED, 11_250_762, 8192),
    ],
)
def test_parameter_counts(name: str, options: Any, count: int, feature_dim: int) -> None:
    network = build_backbone(name, (3, 32, 32), 10, options, device="meta")
    assert sum(p.numel() for p in network.parameters()) == count
    assert network.feature_dim == feature_dim


@pytest.mark.parametrize(
    ("network_class", "options", "spelt", "shape", "feature_dim"),
    [
        (AlexNet, {}, plain.alexnet, (3, 32, 32), 6 * 16),
        (AlexNet, {}, plain.alexnet, (3, 64, 64), 6 * 64),
        (AlexNet, {}, plain.alexnet, (1, 28, 28), 6 * 16),
        (AlexNet, {}, plain.alexnet, (3, 9, 26), 6 * 1 * 3),
        (VGG11, {}, plain.vgg11, (3, 32, 32), 32),
        (VGG11, {}, plain.vgg11, (3, 64, 64), 32),
        (VGG11, {}, plain.vgg11, (1, 28, 28), 32),
        (VGG11, {}, plain.vgg11, (3, 33, 70), 32),
        (ResNet18, {}, RESNET, (3, 32, 32), 32),
        (ResNet18, {}, RESNET, (3, 64, 64), 32),
        (ResNet18, {}, RESNET, (1, 28, 28), 32),
        (ResNet18, {}, RESNET, (3, 9, 4), 32),
        (ResNet18, POOLED, RESNET_POOLED, (3, 32, 32), 32 * 16),
        (ResNet18, POOLED, RESNET_POOLED, (3, 64, 64), 32 * 64),
        (ResNet18, POOLED, RESNET_POOLED, (1, 28, 28), 32 * 9),
        (ResNet18, POOLED, RESNET_POOLED, (3, 17, 31), 32 * 2 * 3),
    ],
)
def test_networks_equal_the_plain_ones(
    network_class: type[Any],
    options: dict[str, Any],
    spelt: Plain,
    shape: tuple[int, int, int],
    feature_dim: int,
) -> None:
    network = network_class(shape, 5, width=4, **options)
    plain.randomised(network)
    images = pictures(2, *shape)
    features, scores = spelt(network, images)
    assert network.feature_dim == feature_dim
    assert features.shape == (2, feature_dim)
    torch.testing.assert_close(network.features(images), features, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(network(images), scores, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("network_class", "options"), NETWORKS)
@pytest.mark.parametrize("norm", ["instancenorm", "groupnorm", "layernorm", "batchnorm", "none"])
def test_every_norm(network_class: type[Any], options: dict[str, Any], norm: str) -> None:
    network = network_class((3, 33, 34), 5, width=8, norm=norm, **options)
    images = pictures(3, 3, 33, 34).float()
    assert isinstance(network, Backbone)
    network(images)  # statistics of batch norm
    kinds = {type(m) for m in network.modules()} & {GroupNorm, LayerNorm, nn.BatchNorm2d}
    expected = {"layernorm": LayerNorm, "batchnorm": nn.BatchNorm2d, "none": None}
    assert kinds == {expected.get(norm, GroupNorm)} - {None}
    network.eval()
    assert torch.equal(network(images), network(images))
    assert torch.equal(network(images), network.classifier(network.features(images)))
    assert network(images).isfinite().all()


@pytest.mark.parametrize(("network_class", "options"), NETWORKS)
def test_inputs_are_left_as_they_are(network_class: type[Any], options: dict[str, Any]) -> None:
    network = network_class((3, 32, 32), 5, width=4, norm="none", **options)
    images = pictures(2, 3, 32, 32).float()
    before = images.clone()
    network(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("network_class", "options", "shape", "enough", "message"),
    [
        (AlexNet, {}, (3, 8, 7), (3, 8, 8), "8x7 are too small for AlexNet.*at least 8x8"),
        (AlexNet, {}, (1, 3, 8), (1, 4, 4), "3x8 are too small for AlexNet.*at least 4x4"),
        (VGG11, {}, (3, 31, 40), (3, 32, 40), "31x40 are too small for VGG11.*at least 32x32"),
        (VGG11, {}, (1, 27, 28), (1, 28, 28), "27x28 are too small for VGG11.*at least 28x28"),
        (ResNet18, {}, (3, 8, 8), (3, 8, 9), "8x8 are too small for ResNet18 with norm instance"),
        (ResNet18, POOLED, (3, 7, 16), (3, 8, 16), "7x16 are too small.*avgpool.*at least 8x8"),
        (ResNet18, POOLED, (3, 15, 15), (3, 8, 16), "15x15 are too small.*norm groupnorm"),
    ],
)
def test_images_too_small_are_refused(
    network_class: type[Any], options: dict[str, Any], shape: Any, enough: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"images of {message}"):
        network_class(shape, 5, width=4, **options)
    network = network_class(enough, 5, width=4, **options)
    plain.randomised(network)
    first, second = network.features(pictures(2, *enough))
    assert not torch.equal(first, second)


def test_resnet_takes_a_single_pixel_with_another_norm() -> None:
    network = ResNet18((3, 1, 1), 5, width=4, norm="groupnorm")
    assert network(torch.randn(2, 3, 1, 1)).shape == (2, 5)


@pytest.mark.parametrize("network_class", [AlexNet, VGG11, ResNet18])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "spectral"}, "norm must be one of instancenorm, .*, none, got 'spectral'"),
        ({"norm": "groupnorm", "width": 6}, "4 groups, which do not divide 6 channels"),
        ({"width": 0}, r"num_classes and width must be at least 1, got \(3, 32, 32\), 5 and 0"),
        ({"num_classes": 0}, "must be at least 1"),
        ({"image_shape": (0, 32, 32)}, "must be at least 1"),
    ],
)
def test_bad_options_are_refused(network_class: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network_class(**{"image_shape": (3, 32, 32), "num_classes": 5, **options})


def test_unknown_downsampling_is_refused() -> None:
    with pytest.raises(ValueError, match="downsampling must be one of stride, avgpool, got 'max'"):
        ResNet18((3, 32, 32), 5, downsampling="max")  # type: ignore[arg-type]
