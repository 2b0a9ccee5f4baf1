"""Log-variance features against the modules of a ConvNet."""

import pytest
import torch
from torch import Tensor, nn

from dam_lightning.backbones import ConvNet
from dam_lightning.functional.log_variance import log_variance_features


def network(channels: int, width: int = 6) -> tuple[ConvNet, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    net = ConvNet((channels, 16, 12), 3, width=width, depth=3).double()
    convolutions = [module for module in net.blocks if isinstance(module, nn.Conv2d)]
    weights = [(conv.weight.detach(), conv.bias.detach()) for conv in convolutions[:2]]
    return net, weights


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_those_of_a_convnet_before_its_norms(channels: int) -> None:
    net, weights = network(channels)
    images = torch.randn(5, channels, 16, 12, dtype=torch.float64)
    outputs: list[Tensor] = []
    for module in net.blocks:
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, output: outputs.append(output.clone()))
    with torch.no_grad():
        net.features(images)
    expected = []
    for image in range(5):
        values = []
        for maps in outputs[:2]:
            for single in maps[image]:
                values.append(float(((single - single.mean()) ** 2).mean().log()))
        expected.append(values)
    kept = images.clone()
    features = log_variance_features(images, *weights)
    assert features.shape == (5, 12)
    torch.testing.assert_close(features, torch.tensor(expected).double(), rtol=1e-6, atol=1e-6)
    assert torch.equal(images, kept)
    # Not what it would be after the norm: the same for every image.
    assert features.std(dim=0).min() > 1e-3


def test_an_image_without_variance_has_a_finite_feature() -> None:
    _, weights = network(3)
    features = log_variance_features(torch.zeros(1, 3, 8, 8, dtype=torch.float64), *weights)
    assert features.isfinite().all()


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 3, 1, 8)],
)
def test_other_images_are_refused(images: Tensor) -> None:
    _, weights = network(3)
    with pytest.raises(ValueError, match="of at least 2x2 pixels"):
        log_variance_features(images, *weights)
