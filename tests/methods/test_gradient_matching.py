"""The matching of gradients and its slopes are those of the plain loop, however computed."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dam_lightning.backbones import build_backbone
from dam_lightning.flat_network import FlatNetwork
from dam_lightning.methods.gradient_matching import GradientMatching, Metric
from dam_lightning.methods.network_gradients import NetworkGradients
from tests.reference.dc import METRICS

SHAPE = (2, 4, 4)


def module(**options: Any) -> nn.Module:
    options = {"width": 4, "depth": 1, "activation": "swish", **options}
    return build_backbone("ConvNet", SHAPE, 3, options).double()


def matching(
    network: nn.Module, metric: Metric, compile: bool = False
) -> tuple[NetworkGradients, GradientMatching]:
    gradients = NetworkGradients(FlatNetwork(network), SHAPE, torch.device("cpu"), compile)
    return gradients, GradientMatching(gradients, metric)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


REAL, SYNTHETIC = pictures(2, 5, *SHAPE), pictures(2, 3, *SHAPE, seed=1)
COUNTS = (5, 4)
WEIGHTS = torch.tensor([[1 / 5] * 5, [1 / 4] * 4 + [0]], dtype=torch.float64)
LABELS = torch.tensor([2, 0])


def plain(network: nn.Module, metric: str) -> tuple[Tensor, Tensor]:
    """Group by group, by autograd."""
    parameters = list(network.requires_grad_(True).parameters())
    total, images = torch.zeros(()), SYNTHETIC.clone().requires_grad_()
    for group, count in enumerate(COUNTS):
        label = LABELS[group].view(1)
        real = REAL[group, :count]
        wanted = torch.autograd.grad(
            F.cross_entropy(network(real), label.expand(count)), parameters
        )
        loss = F.cross_entropy(network(images[group]), label.expand(3))
        found = torch.autograd.grad(loss, parameters, create_graph=True)
        total = total + METRICS[metric](wanted, found)
    return total.detach(), torch.autograd.grad(total, images)[0]


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert not ours.requires_grad
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * scale, check_dtype=False)


@pytest.mark.parametrize("as_vector", [False, True])
@pytest.mark.parametrize(("most", "whole"), [(2, 1), (2, 2), (5, 3), (1, 3)])
@pytest.mark.parametrize("metric", METRICS)
def test_groups_together(metric: Metric, most: int, whole: int, as_vector: bool) -> None:
    """At once, in pieces of two that overlap, image by image."""
    gradients, match = matching(module(), metric)
    vector = gradients.network.initial()
    parts = [vector] if as_vector else gradients.parts(vector)
    found = match(parts, REAL, WEIGHTS, SYNTHETIC, LABELS, most, whole)
    assert_same(found, plain(module(), metric))


@pytest.mark.parametrize(
    ("norm", "compile"), [("instancenorm", False), ("layernorm", False), ("layernorm", True)]
)
def test_groups_one_by_one(monkeypatch: pytest.MonkeyPatch, norm: str, compile: bool) -> None:
    """At once, and in pieces; the padding of the second group is left out."""
    monkeypatch.setattr("dam_lightning.compilation.rank_zero_warn", pytest.fail)
    gradients, match = matching(module(norm=norm), "layerwise_cosine", compile)
    assert gradients.compiles == compile
    parts = gradients.parts(gradients.network.initial())
    expected = plain(module(norm=norm), "layerwise_cosine")
    for whole in (3, 2):
        found = [
            match(
                parts, *(t[i : i + 1] for t in (REAL, WEIGHTS, SYNTHETIC, LABELS)), 2, whole, count
            )
            for i, count in enumerate(COUNTS)
        ]
        assert_same((found[0][0] + found[1][0], torch.cat([f[1] for f in found])), expected)


class Dropping(nn.Module):
    """Leaves features out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images * F.dropout(torch.ones_like(images), 0.5))


def test_pieces_are_repeated_with_the_same_draws() -> None:
    """The slopes are those of the gradients that were compared: the loss changes as they say."""
    torch.manual_seed(1)
    gradients, match = matching(Dropping().double(), "mse")
    assert not gradients.is_plain
    parts = gradients.parts(gradients.network.initial())

    def at(images: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(7)
        return match(parts, REAL[:1], WEIGHTS[:1], images, LABELS[:1], 1, 1)

    images, direction = SYNTHETIC[:1], 1e-5 * pictures(1, 3, *SHAPE, seed=3)
    _, slope = at(images)
    ends = [at(images + direction)[0], at(images - direction)[0]]
    assert float(ends[0] - ends[1]) / 2 == pytest.approx(float((slope * direction).sum()), rel=1e-6)
