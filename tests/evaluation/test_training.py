"""Training of the protocol's networks against the plain loop."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dam_lightning.backbones import Backbone, build_backbone
from dam_lightning.evaluation import Recipe, train_network
from dam_lightning.evaluation.evaluator import train_networks
from dam_lightning.functional import DSA
from dam_lightning.randomness import numpy_generator, torch_generator
from tests.reference import augmentation, convnet
from tests.reference.evaluation import evaluate_synset

NUMBER, CLASSES = 10, 3
SMALL: dict[str, Any] = {"backbone_args": {"width": 8, "depth": 2}, "batch_size": 4}


@pytest.fixture
def _double() -> Iterator[None]:
    """Everything in double precision, so that only a real difference shows."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def training_set(seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(NUMBER) % CLASSES
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUMBER, 3, 16, 16, generator=generator) + labels.view(-1, 1, 1, 1), labels


def trained(recipe: Recipe, seed: int = 7, number: int = 2) -> list[Tensor]:
    network = train_network(*training_set(), CLASSES, recipe, seed=seed, number=number)
    return [p.detach().clone() for p in network.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def plainly_trained(recipe: Recipe, seed: int, number: int) -> nn.Module:
    """The plain loop on the same draws, made again from their keys."""
    images, labels = training_set()
    start = build_backbone(
        "ConvNet",
        (3, 16, 16),
        CLASSES,
        recipe.backbone_args,
        seed=seed,
        stream="evaluation/network",
        group=number,
    )
    network = convnet.ConvNet(3, CLASSES, 8, 2, (16, 16))
    convnet.copy_parameters(start, network)
    permutations = [
        torch.from_numpy(numpy_generator(seed, "evaluation/order", epoch, number).permutation(10))
        for epoch in range(recipe.epochs)
    ]
    generators = [
        torch_generator("cpu", seed, "evaluation/augmentation", epoch, number)
        for epoch in range(recipe.epochs)
    ]

    def augment(batch: Tensor, epoch: int, _: int) -> Tensor:
        assert recipe.augmentation is not None
        names = recipe.augmentation.split("_")
        chosen = int(torch.randint(len(names), (1,), generator=generators[epoch]))
        uniforms = torch.rand(1, len(batch), 3, generator=generators[epoch])[0]
        return augmentation.apply_per_sample(batch, names[chosen], uniforms.tolist())

    evaluate_synset(
        network,
        images,
        labels,
        images[:1],
        labels[:1],
        recipe.epochs - 1,
        permutations,
        augment if recipe.augmentation is not None else None,
        recipe.lr,
        recipe.momentum,
        recipe.weight_decay,
        recipe.batch_size,
    )
    return network


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("augmentation_strategy", [None, DSA, "flip_scale"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 6, 7])
def test_training_equals_the_plain_loop(epochs: int, augmentation_strategy: str | None) -> None:
    """Even and odd numbers of epochs: the smaller step and the fresh momentum come in time."""
    recipe = Recipe(
        epochs=epochs, lr=0.02, weight_decay=0.1, augmentation=augmentation_strategy, **SMALL
    )
    expected = plainly_trained(recipe, 7, 2).parameters()
    for found, wanted in zip(trained(recipe), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("_double")
def test_a_batch_larger_than_the_set_takes_all_of_it() -> None:
    recipe = Recipe(epochs=3, augmentation=None, **{**SMALL, "batch_size": 256})
    expected = plainly_trained(recipe, 7, 2).parameters()
    for found, wanted in zip(trained(recipe), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)


def test_the_epochs_of_the_paper() -> None:
    """1001 of them; the reference above counts to 1000 and runs one more."""
    assert (Recipe().epochs, Recipe().lr, Recipe().batch_size) == (1001, 0.01, 256)
    assert (Recipe().epochs - 1) // 2 + 1 == 1000 // 2 + 1


def test_the_same_key_gives_the_same_network() -> None:
    recipe = Recipe(epochs=2, **SMALL)
    first = trained(recipe)
    torch.manual_seed(9)
    torch.rand(4)
    before = torch.get_rng_state()
    assert same(first, trained(recipe))
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(first, trained(recipe, seed=8))
    assert not same(first, trained(recipe, number=3))


def test_a_network_does_not_depend_on_how_many_are_trained() -> None:
    def networks(count: int) -> list[list[Tensor]]:
        recipe = Recipe(epochs=2, num_networks=count, **SMALL)
        found = train_networks(lambda _: training_set(), CLASSES, recipe, seed=7)
        return [list(network.parameters()) for network in found]

    three, two = networks(3), networks(2)
    assert [len(three), len(two)] == [3, 2]
    assert all(same(a, b) for a, b in zip(three, two, strict=False))
    assert same(three[2], trained(Recipe(epochs=2, **SMALL), number=2))
    assert not same(three[0], three[1])


def test_each_network_is_trained_on_its_own_set() -> None:
    recipe = Recipe(epochs=1, num_networks=2, **SMALL)
    found = train_networks(training_set, CLASSES, recipe, seed=7)
    for number in range(2):
        expected = train_network(
            *training_set(number), CLASSES, recipe, seed=7, number=number
        ).parameters()
        assert same(list(found[number].parameters()), list(expected))


@pytest.mark.parametrize("strategy", [None, DSA])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_training_where_gradients_are_off(mode: Any, strategy: str | None) -> None:
    """As inside Lightning's test loop, images made in inference mode included."""
    recipe = Recipe(epochs=3, augmentation=strategy, **SMALL)
    expected = trained(recipe)
    with mode():
        assert same(expected, trained(recipe))
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_the_trained_network_is_ready_for_testing() -> None:
    images, labels = training_set()
    network = train_network(
        images, labels, CLASSES, Recipe(epochs=12, lr=0.05, **SMALL), seed=0, number=0
    )
    assert not network.training
    with torch.no_grad():
        assert (network(images).argmax(dim=1) == labels).float().mean() == 1


def test_the_training_set_is_left_as_it_was() -> None:
    images, labels = training_set()
    images.requires_grad_()
    before = images.detach().clone()
    train_network(images, labels, CLASSES, Recipe(epochs=2, **SMALL), seed=0, number=0)
    assert torch.equal(images, before)


class Dropping(Backbone):
    """A network that draws while it is trained."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(images.mean(dim=(2, 3)), 0.5, self.training)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def test_networks_with_dropout_follow_the_key_too() -> None:
    recipe = Recipe(backbone=f"{__name__}.Dropping", epochs=2, batch_size=4)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(trained(recipe))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(*found)
