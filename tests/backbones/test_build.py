"""Backbones by name, with weights fixed by their key."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dam_lightning.backbones import Backbone, ConvNet, build_backbone

SHAPE = (3, 8, 8)
SMALL = {"width": 8, "depth": 2}


class Own(Backbone):
    """A backbone of somebody else, which draws from the global generators."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, hidden: int = 4):
        super().__init__()
        assert type(image_shape) is tuple
        self.embedding = nn.Linear(image_shape[0] * image_shape[1] * image_shape[2], hidden)
        self.head = nn.Linear(hidden, num_classes)
        self.offset = torch.rand(())

    def features(self, images: Tensor) -> Tensor:
        return self.embedding(images.flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class Featureless(nn.Module):
    def __init__(self, image_shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        self.features = None


def weights(**key: Any) -> list[Tensor]:
    network = build_backbone("ConvNet", SHAPE, 5, SMALL, **key)
    return [p.detach() for p in network.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_same_key_gives_the_same_weights() -> None:
    key: dict[str, Any] = {"seed": 1, "stream": "a", "step": 2, "group": 3}
    first = weights(**key)
    torch.manual_seed(5)
    torch.rand(3)
    assert same(first, weights(**key))


@pytest.mark.parametrize("part", [{"seed": 2}, {"stream": "b"}, {"step": 3}, {"group": 4}])
def test_every_part_of_the_key_matters(part: dict[str, Any]) -> None:
    key: dict[str, Any] = {"seed": 1, "stream": "a", "step": 2, "group": 3}
    first, other = weights(**key), weights(**{**key, **part})
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[-1], other[-1])


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    build_backbone("ConvNet", SHAPE, 5, SMALL)
    build_backbone(f"{__name__}.Own", SHAPE, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_names_and_options() -> None:
    network = build_backbone("ConvNet", SHAPE, 5, {**SMALL, "pooling": "maxpool"})
    assert isinstance(network, ConvNet)
    assert network.training
    assert network(torch.zeros(2, *SHAPE)).shape == (2, 5)
    assert any(isinstance(module, nn.MaxPool2d) for module in network.modules())
    dotted = build_backbone("dam_lightning.backbones.convnet.ConvNet", SHAPE, 5, SMALL)
    assert type(dotted) is ConvNet
    assert build_backbone("ConvNet", (3, 32, 32), 10).feature_dim == 2048


def test_a_class_of_ones_own() -> None:
    name = f"{__name__}.Own"
    first, second = (build_backbone(name, SHAPE, 5, {"hidden": 6}, seed=3) for _ in range(2))
    assert type(first) is Own
    assert first.features(torch.zeros(2, *SHAPE)).shape == (2, 6)
    assert same(list(first.parameters()), list(second.parameters()))
    assert torch.equal(first.offset, second.offset)
    assert type(build_backbone(name, [3, 8, 8], 5)) is Own  # type: ignore[arg-type]


def test_a_network_is_made_on_its_device() -> None:
    network = build_backbone("ConvNet", SHAPE, 5, SMALL, device="cpu")
    assert {p.device.type for p in network.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    "name", ["NoSuchNet", "nonsense:net", "no_such_package.Net", f"{__name__}.NoSuchNet", "", "."]
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"there is no backbone '{name}'.*such as ConvNet"):
        build_backbone(name, SHAPE, 5)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Convnet", "ConvNet"),
        ("resnet50", "ResNet18"),
        ("VGG", "VGG11"),
        ("ViT-Tiny", "ViTTiny"),
    ],
)
def test_the_nearest_names_are_told(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'; the nearest names are {nearest}"):
        build_backbone(name, SHAPE, 5)


@pytest.mark.parametrize("name", ["AlexNet", "ConvNet", "ResNet18", "VGG11", "ViTSmall", "ViTTiny"])
def test_every_backbone_of_the_package(name: str) -> None:
    options = {"width": 4, **({"depth": 2} if "ViT" in name else {})}
    before = torch.get_rng_state()
    first, second, other = (
        list(build_backbone(name, (3, 32, 32), 5, options, seed=seed).parameters())
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, second)
    assert not torch.equal(first[-2], other[-2])


def test_relative_names_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no backbone"):
        build_backbone(".nets.Own", SHAPE, 5)


@pytest.mark.parametrize("name", ["Backbone", "build_backbone", "build", "vit"])
def test_what_is_no_network_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"backbone '{name}'"):
        build_backbone(name, SHAPE, 5)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone 'ConvNet' with options .*'hidden'"):
        build_backbone("ConvNet", SHAPE, 5, {"hidden": 6})
    with pytest.raises(ValueError, match="norm must be one of"):
        build_backbone("ConvNet", SHAPE, 5, {"norm": "spectral"})


def test_a_network_without_features_is_refused() -> None:
    with pytest.raises(ValueError, match="has no method features"):
        build_backbone(f"{__name__}.Featureless", SHAPE, 5)


def test_generators_are_restored_after_a_failure() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError):
        build_backbone(f"{__name__}.Featureless", SHAPE, 5)
    with pytest.raises(ValueError):
        build_backbone("ConvNet", SHAPE, 5, {"hidden": 6})
    assert torch.equal(torch.get_rng_state(), before)
