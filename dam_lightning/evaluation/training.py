"""Training one fresh network on a training set."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dam_lightning.backbones import Backbone, build_backbone
from dam_lightning.data.sampling import RealImages
from dam_lightning.evaluation.recipe import Recipe
from dam_lightning.functional import augment, augmentation_parameters, strategy_operations
from dam_lightning.randomness import numpy_generator, seeded, torch_generator

__all__ = ["train_network"]


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
    # Outside inference mode, because tensors made in it can take no part in a backward pass.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        # In float32, whatever the Trainer's precision makes of its steps.
        torch.autocast(images.device.type, enabled=False),
        seeded(images.device, seed, f"{stream}/dropout", 0, number),
    ):
        channels, height, width = images.shape[1:]
        network = build_backbone(
            recipe.backbone,
            (channels, height, width),
            num_classes,
            recipe.backbone_args,
            device=images.device,
            seed=seed,
            stream=f"{stream}/network",
            group=number,
        )
        optimizer = _optimizer(network, recipe, recipe.lr)
        for epoch in range(recipe.epochs):
            order = torch.from_numpy(
                numpy_generator(seed, f"{stream}/order", epoch, number).permutation(len(images))
            )
            rows = order if isinstance(images, RealImages) else order.to(images.device)
            answers = labels[order.to(labels.device)]
            generator = torch_generator(
                images.device, seed, f"{stream}/augmentation", epoch, number
            )
            for batch, wanted in zip(
                torch.split(rows, recipe.batch_size),
                torch.split(answers, recipe.batch_size),
                strict=True,
            ):
                inputs = images[batch]
                if recipe.augmentation is not None:
                    inputs = _augment_each(inputs, recipe.augmentation, generator)
                optimizer.zero_grad()
                loss = F.cross_entropy(network(inputs), wanted)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if epoch == (recipe.epochs - 1) // 2 + 1:
                optimizer = _optimizer(network, recipe, recipe.lr * 0.1)
    optimizer.zero_grad()  # gradients would double what the network takes
    network.eval()
    return network


def _optimizer(network: Backbone, recipe: Recipe, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(
        network.parameters(), lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def _augment_each(images: Tensor, strategy: str, generator: torch.Generator) -> Tensor:
    """One operation for the batch, parameters of its own for each image, as in the original."""
    operations = torch.tensor(strategy_operations(strategy), device=images.device)
    choice = torch.randint(len(operations), (1,), generator=generator, device=images.device)
    uniforms = torch.rand(1, len(images), 3, generator=generator, device=images.device)
    height, width = images.shape[-2:]
    parameters = augmentation_parameters(operations[choice], uniforms, (height, width))
    return augment(images.unsqueeze(0), parameters).squeeze(0)
