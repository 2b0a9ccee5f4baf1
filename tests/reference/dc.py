"""Gradient matching (Zhao, Mopuri and Bilen, ICLR 2021) with domain-aware masks, group by group.

The base loss is summed over classes; with masks the same loss is summed over pseudo-domains, on the
masked views of all synthetic images and with a network of its own that tells domains apart. Between
image steps both networks are trained on the synthetic images. Nothing is drawn here: networks,
batches, augmentation and orders are arguments.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import augmentation
from .dm import Augmentation, StepResult, domain_views, sgd_momentum
from .evaluation import Augment
from .experts import train_epoch


def layerwise_cosine(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """One minus the cosine, summed over the rows of all tensors with two or more axes.

    A row is everything that belongs to one index of the first axis: one output of a convolution or
    of a linear layer. Biases and the factors of a norm have one axis and are left out.
    """
    distance = torch.zeros((), dtype=real[0].dtype, device=real[0].device)
    for a, b in zip(real, synthetic, strict=True):
        if a.dim() == 1:
            continue
        for row in range(a.shape[0]):
            p, q = a[row].flatten(), b[row].flatten()
            distance = distance + 1 - (p * q).sum() / (p.norm() * q.norm() + 1e-6)
    return distance


def mse(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum of squared differences over all parameters."""
    distance = torch.zeros((), dtype=real[0].dtype, device=real[0].device)
    for a, b in zip(real, synthetic, strict=True):
        distance = distance + ((a - b) ** 2).sum()
    return distance


def cos(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """One minus the cosine of all parameters as one vector."""
    p = torch.cat([a.flatten() for a in real])
    q = torch.cat([b.flatten() for b in synthetic])
    return 1 - (p * q).sum() / (p.norm() * q.norm() + 1e-6)


METRICS = {"layerwise_cosine": layerwise_cosine, "mse": mse, "cos": cos}


def group_loss(
    real: Tensor,
    synthetic: Tensor,
    group: int,
    network: nn.Module,
    chosen: Augmentation | None,
    metric: str,
) -> Tensor:
    """Distance of the two gradients of the cross-entropy when all images are of ``group``."""
    if chosen is not None:
        operation, uniforms = chosen
        real = augmentation.apply(real, operation, uniforms)
        synthetic = augmentation.apply(synthetic, operation, uniforms)
    parameters = list(network.parameters())

    real_labels = torch.full((len(real),), group, device=real.device)
    real_loss = F.cross_entropy(network(real), real_labels)
    real_gradients = [g.detach() for g in torch.autograd.grad(real_loss, parameters)]

    synthetic_labels = torch.full((len(synthetic),), group, device=synthetic.device)
    synthetic_loss = F.cross_entropy(network(synthetic), synthetic_labels)
    synthetic_gradients = torch.autograd.grad(synthetic_loss, parameters, create_graph=True)
    return METRICS[metric](real_gradients, synthetic_gradients)


def dc_step(
    images: Tensor,
    ipc: int,
    logits: Tensor | None,
    weight: float,
    temperature: float,
    class_network: nn.Module,
    domain_network: nn.Module | None,
    real_class_batches: list[Tensor],
    real_domain_batches: list[Tensor] | None = None,
    class_augmentation: list[Augmentation] | None = None,
    domain_augmentation: list[Augmentation] | None = None,
    metric: str = "layerwise_cosine",
) -> StepResult:
    """Losses and gradients of one image step; the networks are used as they are.

    Args:
        images: (M, C, H, W), class by class.
        ipc: images per class.
        logits: (M, D, C or 1, H, W), or None for the base method.
        weight: factor of the domain loss in the gradients; ``loss_domain`` is returned without it.
        temperature: of the softmax over domains.
        class_network: one output per class.
        domain_network: one output per pseudo-domain; not used without logits.
        real_class_batches: one normalised batch per class.
        real_domain_batches: one per pseudo-domain.
        class_augmentation: (operation, uniforms) per class, the same for real and synthetic images,
            or None for no augmentation.
        domain_augmentation: the same per pseudo-domain.
        metric: a name in ``METRICS``.
    """
    images = images.detach().clone().requires_grad_(True)

    loss_class = torch.zeros((), dtype=images.dtype, device=images.device)
    for c, real in enumerate(real_class_batches):
        synthetic = images[c * ipc : (c + 1) * ipc]
        chosen = None if class_augmentation is None else class_augmentation[c]
        loss_class = loss_class + group_loss(real, synthetic, c, class_network, chosen, metric)

    loss_domain = torch.zeros_like(loss_class)
    if logits is None:
        (grad_images,) = torch.autograd.grad(loss_class, [images])
        return StepResult(loss_class.detach(), loss_domain, grad_images, None)

    logits = logits.detach().clone().requires_grad_(True)
    assert domain_network is not None
    assert real_domain_batches is not None
    for d, view in enumerate(domain_views(images, logits, temperature)):
        chosen = None if domain_augmentation is None else domain_augmentation[d]
        loss_domain = loss_domain + group_loss(
            real_domain_batches[d], view, d, domain_network, chosen, metric
        )
    grad_images, grad_logits = torch.autograd.grad(
        loss_class + weight * loss_domain, [images, logits]
    )
    return StepResult(loss_class.detach(), loss_domain.detach(), grad_images, grad_logits)


def inner_training(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    orders: Sequence[Tensor],
    lr: float,
    batch_size: int,
    augment: Augment | None = None,
) -> None:
    """Train ``network`` in place by SGD without momentum, one epoch per order, in train mode."""
    for epoch, order in enumerate(orders):
        train_epoch(network, images.detach(), labels, order, lr, batch_size, augment, epoch)


def freeze_batch_norm(network: nn.Module, real_batches: Sequence[Tensor]) -> None:
    """Show the network some real images of each group, then keep its running statistics.

    One forward pass of all groups together in train mode; after it the batch norms are in eval
    mode, all else in train mode. A network without batch norm is left as it is. The original shows
    16 images of each group before each image step.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    network.train()
    with torch.no_grad():
        network(torch.cat(list(real_batches)))
    for norm in norms:
        norm.eval()


class Position(NamedTuple):
    """What one position of the outer loop draws; the orders of the last position are not used."""

    real_class_batches: list[Tensor]
    real_domain_batches: list[Tensor] | None = None
    class_augmentation: list[Augmentation] | None = None
    domain_augmentation: list[Augmentation] | None = None
    class_orders: Sequence[Tensor] = ()
    """One permutation of the M images per inner epoch."""
    domain_orders: Sequence[Tensor] = ()
    """One permutation of the D * M views per inner epoch; view d of image m is d * M + m."""
    class_augment: Augment | None = None
    domain_augment: Augment | None = None
    class_statistics: list[Tensor] | None = None
    """Real images of each class for :func:`freeze_batch_norm`."""
    domain_statistics: list[Tensor] | None = None


class DCLoopResult(NamedTuple):
    images: Tensor
    logits: Tensor | None
    images_buffer: Tensor | None
    logits_buffer: Tensor | None
    steps: list[StepResult]
    """Losses and gradients of each position."""


def dc_loop(
    images: Tensor,
    ipc: int,
    logits: Tensor | None,
    weight: float,
    temperature: float,
    class_network: nn.Module,
    domain_network: nn.Module | None,
    positions: Sequence[Position],
    lr_images: float,
    lr_net: float,
    lr_masks: float | None = None,
    batch_train: int = 256,
    momentum: float = 0.5,
    metric: str = "layerwise_cosine",
    freeze: bool = False,
    images_buffer: Tensor | None = None,
    logits_buffer: Tensor | None = None,
) -> DCLoopResult:
    """One outer loop, which trains both networks in place.

    At each position: the image step, then (but for the last position) the training of the class
    network on the images and of the domain network on all their views. ``lr_masks=None`` means as
    the images. One optimiser lasts for the whole run: hand the momentum buffers of one outer loop
    to the next. With ``freeze`` the batch norms of both networks are frozen before each image step.
    """
    lr_masks = lr_images if lr_masks is None else lr_masks
    class_labels = torch.tensor([m // ipc for m in range(len(images))], device=images.device)
    class_network.train()
    if domain_network is not None:
        domain_network.train()
    steps = []
    for number, position in enumerate(positions):
        if freeze:
            assert position.class_statistics is not None
            freeze_batch_norm(class_network, position.class_statistics)
            if logits is not None:
                assert domain_network is not None
                assert position.domain_statistics is not None
                freeze_batch_norm(domain_network, position.domain_statistics)

        step = dc_step(
            images,
            ipc,
            logits,
            weight,
            temperature,
            class_network,
            domain_network,
            position.real_class_batches,
            position.real_domain_batches,
            position.class_augmentation,
            position.domain_augmentation,
            metric,
        )
        steps.append(step)
        images, images_buffer = sgd_momentum(
            images, step.grad_images, images_buffer, lr_images, momentum
        )
        if logits is not None:
            assert step.grad_logits is not None
            logits, logits_buffer = sgd_momentum(
                logits, step.grad_logits, logits_buffer, lr_masks, momentum
            )

        if number == len(positions) - 1:
            break
        inner_training(
            class_network,
            images,
            class_labels,
            position.class_orders,
            lr_net,
            batch_train,
            position.class_augment,
        )
        if logits is not None:
            assert domain_network is not None
            views = domain_views(images, logits, temperature)
            domain_labels = [d for d in range(len(views)) for _ in range(len(images))]
            inner_training(
                domain_network,
                torch.cat(views),
                torch.tensor(domain_labels, device=images.device),
                position.domain_orders,
                lr_net,
                batch_train,
                position.domain_augment,
            )
    return DCLoopResult(images, logits, images_buffer, logits_buffer, steps)
