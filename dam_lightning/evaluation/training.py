"""Training fresh networks on training sets, side by side or one after another."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from dam_lightning.backbones import Backbone, build_backbone
from dam_lightning.data.sampling import RealImages
from dam_lightning.ending import end_if_asked
from dam_lightning.evaluation.batches import Batches
from dam_lightning.evaluation.recipe import Recipe
from dam_lightning.randomness import seeded
from dam_lightning.side_by_side import Networks, augmented, networks_of, work

__all__ = ["computation", "fresh_network", "train_block", "train_network", "training_compiles"]


def train_network(
    images: Tensor | RealImages,
    labels: Tensor,
    num_classes: int,
    recipe: Recipe,
    *,
    seed: int,
    number: int,
    stream: str = "evaluation",
) -> Backbone:
    """Train one network by the recipe, on the device of the images.

    It may be called where gradients or autograd are switched off, as Lightning does in validation
    and testing.

    Args:
        images: (N, C, H, W), normalised; or real images, normalised batch by batch.
        labels: (N,) int64, on the device of the images.
        num_classes: number of outputs.
        recipe: architecture and training.
        seed: of the run; with ``number`` it fixes the initial weights, the order of the images and
            the augmentation.
        number: which of the protocol's networks this is.
        stream: what the network is for; further part of the key.

    Returns:
        The trained network, in evaluation mode.
    """
    (network,) = train_block(
        computation(images, num_classes, recipe),
        [(images, labels)],
        num_classes,
        recipe,
        seed=seed,
        numbers=[number],
        stream=stream,
        compile=training_compiles(images, recipe, 1),
    )
    return network


def training_compiles(images: Tensor | RealImages, recipe: Recipe, count: int) -> bool:
    """Whether the training of so many networks on these images is compiled."""
    each = recipe.epochs * -(-len(images) // recipe.batch_size)
    passed = count * recipe.epochs * len(images)
    return recipe.compiles(work(images.device, images.shape[1:], passed, each))


def computation(images: Tensor | RealImages, num_classes: int, recipe: Recipe) -> Networks:
    """What computes the networks of a recipe.

    Args:
        images: such as they are trained on or tested with.
        num_classes: number of outputs.
        recipe: its backbone is used.
    """
    channels, height, width = images.shape[1:]
    return networks_of(
        recipe.backbone,
        recipe.backbone_args,
        (channels, height, width),
        num_classes,
        images.device,
    )


def fresh_network(
    images: Tensor | RealImages, num_classes: int, recipe: Recipe, **draws: Any
) -> Backbone:
    """A network of the recipe, for images such as these and where they are.

    Args:
        images: (N, C, H, W).
        num_classes: number of outputs.
        recipe: its backbone is used.
        **draws: the key of its weights, as `build_backbone` takes it.
    """
    channels, height, width = images.shape[1:]
    return build_backbone(
        recipe.backbone,
        (channels, height, width),
        num_classes,
        recipe.backbone_args,
        device=images.device,
        **draws,
    )


def train_block(
    networks: Networks,
    sets: Sequence[tuple[Tensor | RealImages, Tensor]],
    num_classes: int,
    recipe: Recipe,
    *,
    seed: int,
    numbers: Sequence[int],
    compile: bool,
    stream: str = "evaluation",
    max_images: int | None = None,
) -> list[Backbone]:
    """Train several networks side by side; each is what it would be if trained alone.

    Args:
        networks: from `computation`.
        sets: images and labels for each network, as of `train_network`; all of one kind and size.
        num_classes: number of outputs.
        recipe: architecture and training.
        seed: as of `train_network`.
        numbers: which of the protocol's networks these are.
        compile: by compiled functions, where `Networks` can compute them.
        stream: as of `train_network`.
        max_images: images whose activations may be in memory together; None: as the device asks.

    Returns:
        The trained networks, in evaluation mode.
    """
    device = sets[0][0].device
    # Outside inference mode, because tensors made in it can take no part in a backward pass.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        # Whatever the Trainer's precision makes of its steps.
        torch.autocast(device.type, enabled=False),
    ):
        trained = [
            fresh_network(
                sets[0][0],
                num_classes,
                recipe,
                seed=seed,
                stream=f"{stream}/network",
                group=number,
            )
            for number in numbers
        ]
        if networks.is_plain:
            batches = Batches(sets, recipe, seed, stream, numbers)
            piece = networks.piece(len(trained), batches.size, max_images)
            _train_together(networks, trained, batches, recipe, piece, compile)
        else:
            for network, own, number in zip(trained, sets, numbers, strict=True):
                with seeded(device, seed, f"{stream}/dropout", 0, number):
                    _train_module(network, Batches([own], recipe, seed, stream, [number]), recipe)
    for network in trained:
        network.eval()
    return trained


def _train_together(
    networks: Networks,
    trained: Sequence[Backbone],
    batches: Batches,
    recipe: Recipe,
    piece: int,
    compile: bool,
) -> None:
    """By gradients of all of them at once, with the parameters of each as a row of a matrix."""
    with torch.no_grad():
        vectors = torch.stack([parameters_to_vector(network.parameters()) for network in trained])
    momenta, lr = torch.zeros_like(vectors), recipe.lr
    for epoch in range(recipe.epochs):
        for images, labels, draws in batches.epoch(epoch):
            end_if_asked()
            with recipe.forward_passes(vectors.device):
                gradient, _ = networks.gradients(
                    vectors, images, labels, draws, piece=piece, compile=compile
                )
            # In the order of torch.optim.SGD.
            gradient.add_(vectors, alpha=recipe.weight_decay)
            momenta.mul_(recipe.momentum).add_(gradient)
            vectors.sub_(momenta, alpha=lr)
        if epoch == _last_before_the_fall(recipe):
            lr = recipe.lr * 0.1
            momenta.zero_()
    with torch.no_grad():
        for network, vector in zip(trained, vectors, strict=True):
            for mine, found in zip(network.parameters(), networks.flat.split(vector), strict=True):
                mine.copy_(found)


def _train_module(network: Backbone, batches: Batches, recipe: Recipe) -> None:
    """As it is, with its own forward pass: for what `Networks` cannot compute."""
    optimizer = _optimizer(network, recipe, recipe.lr)
    for epoch in range(recipe.epochs):
        for images, labels, draws in batches.epoch(epoch):
            end_if_asked()
            inputs = images if draws is None else augmented(images, *draws)
            optimizer.zero_grad()
            with recipe.forward_passes(inputs.device):
                loss = F.cross_entropy(network(inputs[0]), labels[0])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if epoch == _last_before_the_fall(recipe):
            optimizer = _optimizer(network, recipe, recipe.lr * 0.1)
    optimizer.zero_grad()  # gradients would double what the network takes


def _optimizer(network: Backbone, recipe: Recipe, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(
        network.parameters(), lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def _last_before_the_fall(recipe: Recipe) -> int:
    """The epoch after which the step size falls and momentum begins again."""
    return (recipe.epochs - 1) // 2 + 1
