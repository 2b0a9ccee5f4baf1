"""Vision transformers against plain ones and timm's, and differentiated twice."""

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from dam_lightning.backbones import ViTSmall, ViTTiny, build_backbone
from dam_lightning.flat_network import FlatNetwork
from tests.backbones import plain
from tests.reference.convnet import copy_parameters

SMALL: dict[str, Any] = {"width": 12, "depth": 2, "heads": 3, "mlp_width": 20, "head_width": 5}


def pictures(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "options", "count", "feature_dim"),
    [
        ("ViTTiny", {}, 5_362_762, 192),
        ("ViTSmall", {}, 21_342_346, 384),
        ("ViTTiny", {"width": 512, "depth": 4, "heads": 6, "mlp_width": 256}, 4_277_258, 512),
    ],
)
def test_parameter_counts(name: str, options: Any, count: int, feature_dim: int) -> None:
    network = build_backbone(name, (3, 32, 32), 10, options, device="meta")
    assert sum(p.numel() for p in network.parameters()) == count
    assert network.feature_dim == feature_dim


@pytest.mark.parametrize(
    ("ours", "theirs"), [(ViTTiny, "deit_tiny_patch16_224"), (ViTSmall, "deit_small_patch16_224")]
)
def test_the_parameters_are_those_of_deit(ours: Any, theirs: str) -> None:
    network = ours((3, 32, 32), 10)
    deit = timm.create_model(theirs, img_size=32, patch_size=4, num_classes=10)
    shapes = [p.shape for p in deit.parameters()]
    assert [p.shape for p in network.parameters()] == shapes


def test_the_network_equals_timms() -> None:
    theirs = TimmTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2, num_classes=5
    )
    plain.randomised(theirs)
    ours = ViTTiny((3, 16, 16), 5, 24, 2, 3, 48, head_width=8, patch_size=4).double()
    copy_parameters(theirs, ours)
    images = pictures(2, 3, 16, 16)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("shape", "patch_size", "tokens"),
    [
        ((3, 32, 32), None, 65),
        ((3, 64, 64), None, 65),
        ((1, 28, 28), None, 50),
        ((2, 16, 32), None, 129),
        ((3, 4, 6), None, 25),
        ((3, 32, 32), 8, 17),
    ],
)
def test_networks_equal_the_plain_ones(shape: Any, patch_size: int | None, tokens: int) -> None:
    network = ViTTiny(shape, 5, patch_size=patch_size, **SMALL)
    plain.randomised(network)
    assert network.positions.shape == (1, tokens, 12)
    assert network.feature_dim == 12
    images = pictures(2, *shape)
    features, scores = plain.transformer(network, images, heads=3, depth=2)
    torch.testing.assert_close(network.features(images), features, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(network(images), scores, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("shape", "patch_size", "padding"),  # left, right, top, bottom
    [
        ((3, 30, 30), 8, (1, 1, 1, 1)),
        ((3, 17, 23), None, (1, 0, 1, 0)),
        ((3, 13, 16), 5, (2, 2, 1, 1)),
    ],
)
def test_odd_sizes_are_padded(shape: Any, patch_size: int | None, padding: Any) -> None:
    network = ViTTiny(shape, 5, patch_size=patch_size, **SMALL)
    plain.randomised(network)
    images = pictures(2, *shape)
    _, scores = plain.transformer(network, F.pad(images, padding), heads=3, depth=2)
    torch.testing.assert_close(network(images), scores, atol=1e-9, rtol=1e-9)


def test_weights_begin_as_deits() -> None:
    network = build_backbone("ViTTiny", (3, 8, 8), 50, {"depth": 2})
    for name, parameter in network.named_parameters():
        if name.endswith("bias") and not name.startswith("patches"):
            assert not parameter.any(), name
        elif parameter.ndim > 1 and not name.startswith("patches"):
            assert 0.015 < parameter.std() < 0.025, name


def test_dropout_drops_in_training_only() -> None:
    network = ViTTiny((3, 8, 8), 5, dropout=0.5, **SMALL)
    drops = [m for m in network.modules() if isinstance(m, nn.Dropout)]
    assert len(drops) == 1 + 2 * 3
    assert {m.p for m in drops} == {0.5}
    images = pictures(2, 3, 8, 8).float()
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))
    assert torch.equal(network(images), network.classifier(network.features(images)))


def test_second_derivatives_equal_finite_differences() -> None:
    """Of what DC does: a function of weight gradients, by the images; two groups at once."""
    module = ViTTiny((3, 4, 4), 3, patch_size=2, **SMALL)
    network = FlatNetwork(plain.randomised(module))
    parameters = network.split(network.initial())
    labels = torch.tensor([[0, 1], [2, 0]])
    weights = torch.full((2, 2), 0.5, dtype=torch.float64)

    def value(images: Tensor) -> Tensor:
        gradients = network.gradients(parameters, images, labels, weights)
        return torch.stack([g.square().sum() for g in gradients]).sum()

    images = pictures(2, 2, 3, 4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(value(images), images)
    direction = pictures(5, 2, 2, 3, 4, 4)[-1]
    with torch.no_grad():
        step = 1e-5 * direction
        difference = (value(images + step) - value(images - step)) / 2e-5
    assert difference.abs() > 1e-3
    torch.testing.assert_close((gradient * direction).sum(), difference, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("network_class", [ViTTiny, ViTSmall])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 9}, "patch_size 9 is larger than images of 8x16; use at most 8"),
        ({"patch_size": 0}, "patch_size must be at least 1"),
        ({"heads": 0}, "must be at least 1"),
        ({"head_width": 0}, "must be at least 1"),
        ({"image_shape": (3, 0, 8)}, "must be at least 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_options_are_refused(network_class: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network_class(**{"image_shape": (3, 8, 16), "num_classes": 5, **options})
