"""Weights drawn in one call are distributed as the layers' own."""

from typing import Any

import pytest
import torch
from torch import nn

from dam_lightning.backbones import AlexNet, ConvNet, ResNet18, ViTTiny, build_backbone
from dam_lightning.backbones.initialisation import FreshWeights
from dam_lightning.randomness import torch_generator

SHAPE = (3, 32, 32)


@pytest.mark.parametrize(
    ("network_class", "options"),
    [
        (ConvNet, {}),
        (ConvNet, {"norm": "groupnorm"}),
        (ConvNet, {"norm": "batchnorm"}),
        (ConvNet, {"norm": "layernorm", "width": 16}),
        (AlexNet, {}),
        (ResNet18, {}),
    ],
)
def test_as_the_constructors_leave_them(network_class: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    theirs = network_class(SHAPE, 10, **options)
    ours = network_class(SHAPE, 10, **options)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.fill_(99.0)
    FreshWeights(ours).draw(torch.Generator().manual_seed(0))
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.unique().numel() == 1:
            assert torch.equal(mine, other), name
            continue
        if mine.numel() > 5000:
            # Smallest, largest, mean and deviation of so many uniform numbers hardly differ.
            limit = float(other.abs().max())
            assert float(mine.abs().max()) == pytest.approx(limit, rel=0.01), name
            assert float(mine.mean()) == pytest.approx(0, abs=0.05 * limit), name
            assert float(mine.std()) == pytest.approx(float(other.std()), rel=0.05), name
        else:
            # Within the limit of the layer, and not all near zero.
            layer = dict(theirs.named_modules())[name.rpartition(".")[0]]
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            limit = layer.weight[0].numel() ** -0.5
            assert 0.5 * limit < float(mine.abs().max()) <= limit, name


def test_build_backbone_gives_what_is_drawn_again() -> None:
    key = (7, "network", 3, 1)
    built = build_backbone("ConvNet", SHAPE, 10, seed=7, stream="network", step=3, group=1)
    again = ConvNet(SHAPE, 10)
    FreshWeights(again).draw(torch_generator("cpu", *key))
    for one, other in zip(built.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_other_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"how to draw .*position.* is not known"):
        FreshWeights(ViTTiny(SHAPE, 10))
