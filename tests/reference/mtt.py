"""Trajectory matching (Cazenavette and others, CVPR 2022) with domain-aware masks, fully unrolled.

A student that starts where an expert was is trained on the synthetic images by SGD; the loss is how
far it ends from where the expert went. With masks a second student, which tells pseudo-domains
apart, does the same on the masked views. Nothing is drawn here: trajectories, batches and
augmentation are arguments.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import augmentation
from .dm import domain_views

# One operation for the batch, three uniforms for each of its images.
BatchAugmentation = tuple[str, Sequence[Sequence[float]]]


class StudentResult(NamedTuple):
    loss: Tensor
    grad_images: Tensor
    grad_step_size: Tensor


class Branch(NamedTuple):
    """One student: its network, its stretch of an expert's trajectory and what its steps draw."""

    network: nn.Module
    start: Tensor
    target: Tensor
    batches: Sequence[Tensor]
    """One vector of indices into the pool per inner step."""
    augmentations: Sequence[BatchAugmentation] | None
    step_size: Tensor | None
    """Scalar; None, for the domain branch only, shares the class branch's."""


class MTTResult(NamedTuple):
    loss_class: Tensor
    loss_domain: Tensor
    grad_images: Tensor
    grad_logits: Tensor | None
    grad_step_size: Tensor
    grad_step_size_domain: Tensor | None
    """With the weight of the domain loss; None where the step size is shared."""


def inner_batches(permutations: Sequence[Tensor], batch_syn: int, steps: int) -> list[Tensor]:
    """Chunks of a permutation of the pool in order, then of the next one, until there are enough.

    The last chunk of a permutation may be smaller.
    """

    def chunks() -> Iterator[Tensor]:
        for permutation in permutations:
            for first in range(0, len(permutation), batch_syn):
                yield permutation[first : first + batch_syn]

    endless = chunks()
    return [next(endless) for _ in range(steps)]


def call(network: nn.Module, flat: Tensor, images: Tensor) -> Tensor:
    """The network's outputs with the parameters of a flat vector, in their named order."""
    parameters = {}
    position = 0
    for name, parameter in network.named_parameters():
        piece = flat[position : position + parameter.numel()]
        parameters[name] = piece.reshape(parameter.shape)
        position += parameter.numel()
    assert position == len(flat)
    outputs: Tensor = torch.func.functional_call(network, parameters, (images,))
    return outputs


def trajectory_distance(
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Tensor],
    augmentations: Sequence[BatchAugmentation] | None,
    step_size: Tensor,
    network: nn.Module,
) -> Tensor:
    """The loss with its graph through all inner steps."""
    theta = start.detach().clone().requires_grad_(True)
    for number, chosen in enumerate(batches):
        batch = images[chosen]
        if augmentations is not None:
            operation, uniforms = augmentations[number]
            batch = augmentation.apply_per_sample(batch, operation, uniforms)
        loss = F.cross_entropy(call(network, theta, batch), labels[chosen])
        (gradient,) = torch.autograd.grad(loss, [theta], create_graph=True)
        theta = theta - step_size * gradient
    return ((theta - target) ** 2).sum() / ((start - target) ** 2).sum()


def student_loss(
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Tensor],
    augmentations: Sequence[BatchAugmentation] | None,
    step_size: Tensor,
    network: nn.Module,
) -> StudentResult:
    """Loss of one student and its gradients.

    Args:
        start: flat parameters of the expert at the first epoch of the stretch.
        target: the same at its last epoch.
        images: (P, C, H, W), the pool.
        labels: (P,) int64.
        batches: indices into the pool, one vector per inner step.
        augmentations: (operation, uniforms per image) per inner step, or None for none.
        step_size: scalar.
        network: gives the shapes and the order of the parameters; its own values are not used.
    """
    images = images.detach().clone().requires_grad_(True)
    step_size = step_size.detach().clone().requires_grad_(True)
    loss = trajectory_distance(
        start, target, images, labels, batches, augmentations, step_size, network
    )
    grad_images, grad_step_size = torch.autograd.grad(loss, [images, step_size])
    return StudentResult(loss.detach(), grad_images, grad_step_size)


def mtt_step(
    images: Tensor,
    labels: Tensor,
    logits: Tensor | None,
    weight: float,
    temperature: float,
    class_branch: Branch,
    domain_branch: Branch | None = None,
) -> MTTResult:
    """Losses and gradients of one step.

    Args:
        images: (M, C, H, W), the pool of the class branch.
        labels: (M,) int64, their classes.
        logits: (M, D, C or 1, H, W), or None for the base method.
        weight: factor of the domain loss in the gradients; ``loss_domain`` is returned without it.
        temperature: of the softmax over domains.
        class_branch: a student with one output per class.
        domain_branch: a student with one output per pseudo-domain; its pool is the D * M views,
            view d of image m at index d * M + m, labelled d.
    """
    images = images.detach().clone().requires_grad_(True)
    assert class_branch.step_size is not None
    step_size = class_branch.step_size.detach().clone().requires_grad_(True)
    loss_class = trajectory_distance(
        class_branch.start,
        class_branch.target,
        images,
        labels,
        class_branch.batches,
        class_branch.augmentations,
        step_size,
        class_branch.network,
    )
    if logits is None:
        gradients = torch.autograd.grad(loss_class, [images, step_size])
        nothing = torch.zeros_like(loss_class)
        return MTTResult(loss_class.detach(), nothing, gradients[0], None, gradients[1], None)

    assert domain_branch is not None
    logits = logits.detach().clone().requires_grad_(True)
    views = domain_views(images, logits, temperature)
    domain_labels = [d for d in range(len(views)) for _ in range(len(images))]
    shared = domain_branch.step_size is None
    if domain_branch.step_size is None:
        domain_step_size = step_size
    else:
        domain_step_size = domain_branch.step_size.detach().clone().requires_grad_(True)
    loss_domain = trajectory_distance(
        domain_branch.start,
        domain_branch.target,
        torch.cat(views),
        torch.tensor(domain_labels, device=images.device),
        domain_branch.batches,
        domain_branch.augmentations,
        domain_step_size,
        domain_branch.network,
    )
    wanted = [images, logits, step_size]
    if not shared:
        wanted.append(domain_step_size)
    gradients = torch.autograd.grad(loss_class + weight * loss_domain, wanted)
    return MTTResult(
        loss_class.detach(),
        loss_domain.detach(),
        gradients[0],
        gradients[1],
        gradients[2],
        None if shared else gradients[3],
    )


def central_difference(
    function: Callable[[Tensor], float], tensor: Tensor, index: tuple[int, ...], epsilon: float
) -> float:
    """Slope of a function along one entry of its argument; ``()`` is the entry of a scalar."""
    above, below = tensor.detach().clone(), tensor.detach().clone()
    above[index] += epsilon
    below[index] -= epsilon
    return (function(above) - function(below)) / (2 * epsilon)
