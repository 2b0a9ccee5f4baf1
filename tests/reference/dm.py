"""Distribution matching (Zhao and Bilen, WACV 2023) with domain-aware masks, one group at a time.

The base loss is summed over classes; with masks the same loss is summed over pseudo-domains on the
masked views of all synthetic images, weighted and added. Real and synthetic images of a group get
the same augmentation. Nothing is drawn here: networks, batches and augmentation are arguments.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import augmentation

Augmentation = tuple[str, Sequence[float]]


class StepInputs(NamedTuple):
    """What one step draws."""

    network_features: Callable[[Tensor], Tensor]
    real_class_batches: list[Tensor]
    real_domain_batches: list[Tensor] | None = None
    class_augmentation: list[Augmentation] | None = None
    domain_augmentation: list[Augmentation] | None = None


class StepResult(NamedTuple):
    loss_class: Tensor
    loss_domain: Tensor
    grad_images: Tensor
    grad_logits: Tensor | None


class LoopResult(NamedTuple):
    images: Tensor
    logits: Tensor | None
    losses_class: list[float]
    losses_domain: list[float]


def domain_views(images: Tensor, logits: Tensor, temperature: float) -> list[Tensor]:
    """One view of all images per domain: image times the softmax, over domains, of its logits."""
    num_domains = logits.shape[1]
    exponentials = []
    for d in range(num_domains):
        # The largest logit is subtracted so that nothing overflows; the quotient stays the same.
        largest = logits.max(dim=1).values.detach()
        exponentials.append(torch.exp((logits[:, d] - largest) / temperature))
    total = exponentials[0]
    for d in range(1, num_domains):
        total = total + exponentials[d]
    return [images * (exponentials[d] / total) for d in range(num_domains)]


def group_loss(
    real: Tensor,
    synthetic: Tensor,
    network_features: Callable[[Tensor], Tensor],
    chosen: Augmentation | None,
) -> Tensor:
    """Squared distance of the mean features of one real and one synthetic group."""
    if chosen is not None:
        operation, uniforms = chosen
        real = augmentation.apply(real, operation, uniforms)
        synthetic = augmentation.apply(synthetic, operation, uniforms)
    real_features = network_features(real).detach().flatten(1)
    synthetic_features = network_features(synthetic).flatten(1)
    difference = real_features.mean(dim=0) - synthetic_features.mean(dim=0)
    return (difference**2).sum()


def dm_step(
    images: Tensor,
    labels_per_class: int,
    logits: Tensor | None,
    weight: float,
    temperature: float,
    network_features: Callable[[Tensor], Tensor],
    real_class_batches: list[Tensor],
    real_domain_batches: list[Tensor] | None = None,
    class_augmentation: list[Augmentation] | None = None,
    domain_augmentation: list[Augmentation] | None = None,
) -> StepResult:
    """Losses and gradients of one step.

    Args:
        images: (M, C, H, W), class by class.
        labels_per_class: images per class.
        logits: (M, D, C or 1, H, W), or None for the base method.
        weight: factor of the domain loss in the gradients; ``loss_domain`` is returned without it.
        temperature: of the softmax over domains.
        network_features: (B, C, H, W) -> features of any shape, the frozen random network.
        real_class_batches: one normalised batch per class.
        real_domain_batches: one per pseudo-domain.
        class_augmentation: (operation, uniforms) per class, or None for no augmentation.
        domain_augmentation: the same per pseudo-domain.
    """
    images = images.detach().clone().requires_grad_(True)

    loss_class = torch.zeros((), dtype=images.dtype, device=images.device)
    for c, real in enumerate(real_class_batches):
        synthetic = images[c * labels_per_class : (c + 1) * labels_per_class]
        chosen = None if class_augmentation is None else class_augmentation[c]
        loss_class = loss_class + group_loss(real, synthetic, network_features, chosen)

    loss_domain = torch.zeros_like(loss_class)
    if logits is None:
        (grad_images,) = torch.autograd.grad(loss_class, [images])
        return StepResult(loss_class.detach(), loss_domain, grad_images, None)

    logits = logits.detach().clone().requires_grad_(True)
    assert real_domain_batches is not None
    for d, view in enumerate(domain_views(images, logits, temperature)):
        chosen = None if domain_augmentation is None else domain_augmentation[d]
        loss_domain = loss_domain + group_loss(
            real_domain_batches[d], view, network_features, chosen
        )
    grad_images, grad_logits = torch.autograd.grad(
        loss_class + weight * loss_domain, [images, logits]
    )
    return StepResult(loss_class.detach(), loss_domain.detach(), grad_images, grad_logits)


def sgd_momentum(
    parameter: Tensor,
    gradient: Tensor,
    buffer: Tensor | None,
    learning_rate: float,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """One SGD step as PyTorch defines it: the first buffer is the gradient, without step size."""
    buffer = gradient.clone() if buffer is None else momentum * buffer + gradient
    return parameter - learning_rate * buffer, buffer


def dm_loop(
    images: Tensor,
    labels_per_class: int,
    logits: Tensor | None,
    weight: float,
    temperature: float,
    steps: Sequence[StepInputs],
    lr_images: float,
    lr_masks: float | None = None,
    momentum: float = 0.5,
) -> LoopResult:
    """Several steps with one optimiser for the whole run; ``lr_masks=None`` means as the images."""
    lr_masks = lr_images if lr_masks is None else lr_masks
    images_buffer: Tensor | None = None
    logits_buffer: Tensor | None = None
    losses_class: list[float] = []
    losses_domain: list[float] = []
    for inputs in steps:
        result = dm_step(images, labels_per_class, logits, weight, temperature, *inputs)
        losses_class.append(result.loss_class.item())
        losses_domain.append(result.loss_domain.item())
        assert not math.isnan(losses_class[-1] + losses_domain[-1])
        images, images_buffer = sgd_momentum(
            images, result.grad_images, images_buffer, lr_images, momentum
        )
        if logits is not None:
            assert result.grad_logits is not None
            logits, logits_buffer = sgd_momentum(
                logits, result.grad_logits, logits_buffer, lr_masks, momentum
            )
    return LoopResult(images, logits, losses_class, losses_domain)
