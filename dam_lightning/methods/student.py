"""A student that is trained on the synthetic images, and the gradient through all of its training.

Cazenavette et al., Dataset Distillation by Matching Training Trajectories (CVPR 2022), algorithm 1;
``distill.py`` of GeorgeCazenavette/mtt-distillation.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad_and_value

from dam_lightning.functional import (
    AugmentationParameters,
    augment,
    augmentation_parameters,
    trajectory_matching_loss,
)
from dam_lightning.methods.flat_network import FlatNetwork

__all__ = ["InnerBatch", "Student", "StudentResult", "inner_batches"]


class InnerBatch(NamedTuple):
    """What the student sees in one of its steps.

    Attributes:
        indices: (N,) int64 into the pool of synthetic images, on the device of the images.
        augmentation: of each image, (N, ...), or None.
    """

    indices: Tensor
    augmentation: AugmentationParameters | None

    def augmented(self, images: Tensor) -> Tensor:
        """The images of this batch, (N, C, H, W), as the student sees them."""
        if self.augmentation is None:
            return images
        return augment(images, self.augmentation)

    def split(self, size: int) -> Iterator["InnerBatch"]:
        """The same batch in pieces of at most ``size`` images."""
        for start in range(0, len(self.indices), size):
            part = slice(start, start + size)
            drawn = self.augmentation
            if drawn is not None:
                drawn = AugmentationParameters(*(tensor[part] for tensor in drawn))
            yield InnerBatch(self.indices[part], drawn)


def inner_batches(
    generator: np.random.Generator,
    pool_size: int,
    batch_size: int,
    steps: int,
    operations: Sequence[int],
    like: Tensor,
) -> list[InnerBatch]:
    """Draw the batches of all steps.

    The pool is cut into batches in random order, of which the last may be smaller, and shuffled
    anew when it is used up. A batch has one operation, with parameters of its own for each image.

    Args:
        generator: of all draws.
        pool_size: synthetic images.
        batch_size: images in a batch.
        steps: number of batches.
        operations: DSA strategy from `strategy_operations`; empty: no augmentation.
        like: images (..., H, W), on whose device and in whose precision the draws are wanted.
    """
    chosen: list[Tensor] = []
    while len(chosen) < steps:
        order = torch.from_numpy(generator.permutation(pool_size))
        chosen += torch.split(order, batch_size)
    sizes = [len(indices) for indices in chosen[:steps]]
    # One copy to the device for all batches.
    indices = torch.split(torch.cat(chosen[:steps]).to(like.device, non_blocking=True), sizes)
    if not operations:
        return [InnerBatch(batch, None) for batch in indices]
    drawn_operations, uniforms = [], []
    for size in sizes:
        drawn_operations.append(int(generator.choice(operations)))
        uniforms.append(torch.from_numpy(generator.random((size, 3))))
    height, width = like.shape[-2:]
    parameters = augmentation_parameters(
        torch.tensor(drawn_operations).repeat_interleave(torch.tensor(sizes)),
        torch.cat(uniforms),
        (height, width),
    ).to(like, non_blocking=True)
    split = zip(*(torch.split(tensor, sizes) for tensor in parameters), strict=True)
    return [
        InnerBatch(batch, AugmentationParameters(*drawn))
        for batch, drawn in zip(indices, split, strict=True)
    ]


class StudentResult(NamedTuple):
    """Loss and gradients.

    Attributes:
        loss: scalar.
        images: gradient with respect to the pool, (P, C, H, W).
        step_size: gradient with respect to the step size, scalar.
    """

    loss: Tensor
    images: Tensor
    step_size: Tensor


class Student:
    """Trains on synthetic images, and differentiates how far it ends from where an expert ended.

    Args:
        network: its architecture.
        max_images: images whose activations may be in memory together, with ``adjoint``.
        adjoint: keep the student's parameters of all steps and walk back with the graph of one step
            at a time: memory does not grow with the steps, for a third more work. Else the graph
            of all steps is kept. The gradients are the same.
    """

    def __init__(self, network: FlatNetwork, max_images: int, adjoint: bool) -> None:
        self._network = network
        self._max_images = max_images
        self._adjoint = adjoint

    def match(
        self,
        pool: Tensor,
        labels: Tensor,
        batches: Sequence[InnerBatch],
        step_size: Tensor,
        start: Tensor,
        target: Tensor,
    ) -> StudentResult:
        """Train from ``start``, and compare with ``target``.

        Args:
            pool: synthetic images, (P, C, H, W); its graph is not used.
            labels: (P,) int64.
            batches: of the steps.
            step_size: of the student's SGD, a scalar.
            start: the expert's parameters from which the student starts.
            target: the expert's parameters some epochs later.
        """
        way = self._by_adjoint if self._adjoint else self._by_unroll
        return way(pool.detach(), labels, batches, step_size.detach(), start, target)

    def _by_unroll(
        self,
        pool: Tensor,
        labels: Tensor,
        batches: Sequence[InnerBatch],
        step_size: Tensor,
        start: Tensor,
        target: Tensor,
    ) -> StudentResult:
        """The graph of everything."""
        pool, step_size = pool.requires_grad_(), step_size.requires_grad_()
        student = start
        for batch in batches:
            images, targets = batch.augmented(pool[batch.indices]), labels[batch.indices]
            student = student - step_size * self._network.vector_gradient(student, images, targets)
        loss = trajectory_matching_loss(student, start, target)
        return StudentResult(loss.detach(), *torch.autograd.grad(loss, (pool, step_size)))

    def _by_adjoint(
        self,
        pool: Tensor,
        labels: Tensor,
        batches: Sequence[InnerBatch],
        step_size: Tensor,
        start: Tensor,
        target: Tensor,
    ) -> StudentResult:
        """With the graph of one step at a time.

        With a step ``s' = s - a g(s, x)`` and the loss' gradient ``v'`` with respect to ``s'``, the
        gradients are ``v = v' - a d(g.v')/ds``, ``-a d(g.v')/dx`` and ``-g.v'`` for ``a``.
        """
        students = [start]
        with torch.no_grad():
            for batch in batches:
                gradient = torch.zeros_like(start)
                for piece in batch.split(self._max_images):
                    images = piece.augmented(pool[piece.indices])
                    gradient += self._network.vector_gradient(
                        students[-1], images, labels[piece.indices], _weights(piece, batch, pool)
                    )
                students.append(students[-1] - step_size * gradient)
        # Named apart from the student's gradient: this is how the loss changes with the student.
        adjoint, loss = grad_and_value(trajectory_matching_loss)(students.pop(), start, target)
        of_pool, of_step_size = torch.zeros_like(pool), torch.zeros_like(step_size)
        for batch in reversed(batches):
            student, change = students.pop(), torch.zeros_like(adjoint)
            for piece in batch.split(self._max_images):
                targets, weights = labels[piece.indices], _weights(piece, batch, pool)
                chosen = pool[piece.indices].requires_grad_()
                images = piece.augmented(chosen)

                def along(
                    student: Tensor,
                    images: Tensor,
                    targets: Tensor = targets,
                    weights: Tensor = weights,
                    adjoint: Tensor = adjoint,
                ) -> Tensor:
                    gradient = self._network.vector_gradient(student, images, targets, weights)
                    # Not a matrix product, which autocast would round to bfloat16.
                    return (gradient * adjoint).sum()

                (of_student, of_images), slope = grad_and_value(along, argnums=(0, 1))(
                    student, images.detach()
                )
                (of_chosen,) = torch.autograd.grad(images, chosen, of_images)
                # No index is there twice, so nothing depends on an order of additions.
                of_pool.index_add_(0, piece.indices, -step_size * of_chosen)
                of_step_size -= slope
                change += of_student
            adjoint = adjoint - step_size * change
        return StudentResult(loss, of_pool, of_step_size)


def _weights(piece: InnerBatch, batch: InnerBatch, like: Tensor) -> Tensor:
    """Of each image of a piece, its share in the mean over the batch: (N,)."""
    share = 1 / len(batch.indices)
    return torch.full((len(piece.indices),), share, dtype=like.dtype, device=like.device)
