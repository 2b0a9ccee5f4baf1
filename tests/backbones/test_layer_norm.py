"""Layer normalisation against PyTorch's, and its second derivative in a batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dam_lightning.backbones import ConvNet, ResNet18
from dam_lightning.backbones.layer_norm import LayerNorm
from dam_lightning.flat_network import FlatNetwork
from tests.backbones.plain import randomised


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_the_same_numbers_as_pytorchs(shape: tuple[int, ...], eps: float) -> None:
    ours = randomised(LayerNorm(shape, eps))
    theirs = nn.LayerNorm(shape, eps).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x))
    gradients = [torch.autograd.grad(net(x).pow(3).sum(), x)[0] for net in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_low_precision_is_computed_in_float32() -> None:
    x = torch.randn(4, 64).bfloat16() + 100
    expected = nn.LayerNorm(64)(x.float())
    torch.testing.assert_close(LayerNorm([64])(x), expected)


@pytest.mark.parametrize(
    "network",
    [
        ConvNet((3, 8, 8), 3, width=4, depth=2, norm="layernorm"),
        ConvNet((3, 8, 8), 3, width=4, depth=2, norm="instancenorm"),
        ResNet18((3, 8, 8), 3, width=4, norm="layernorm"),
    ],
)
def test_groups_together_equal_groups_apart(network: Any) -> None:
    """In the second derivative, by the images, that DC takes."""
    flat = FlatNetwork(randomised(network))
    parameters = flat.split(flat.initial())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64, generator=generator)
    labels = torch.tensor([[0, 1], [2, 0]])
    weights = torch.full((2, 2), 0.5, dtype=torch.float64)

    def second(groups: list[slice]) -> Tensor:
        x = images.clone().requires_grad_()
        gradients = [
            g
            for group in groups
            for g in flat.gradients(parameters, x[group], labels[group], weights[group])
        ]
        total = torch.stack([g.square().sum() for g in gradients]).sum()
        return torch.autograd.grad(total, x)[0]

    apart = second([slice(0, 1), slice(1, 2)])
    assert apart.any()
    torch.testing.assert_close(second([slice(0, 2)]), apart, atol=1e-9, rtol=1e-7)
