"""A student that is trained on the synthetic images, and the gradient through all of its training.

Cazenavette et al., Dataset Distillation by Matching Training Trajectories (CVPR 2022), algorithm 1;
``distill.py`` of GeorgeCazenavette/mtt-distillation.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp

from dam_lightning.compilation import Compiled
from dam_lightning.flat_network import FlatNetwork
from dam_lightning.functional import (
    AugmentationParameters,
    augment,
    augmentation_parameters,
    trajectory_matching_loss,
)
from dam_lightning.functional.host import to_device

__all__ = ["InnerBatch", "Student", "StudentResult", "inner_batches"]


class InnerBatch(NamedTuple):
    """What the student sees in one of its steps, or a piece of it.

    Attributes:
        indices: (N,) int64 into the pool of synthetic images, on the device of the images.
        augmentation: of each image, (N, ...), or None.
    """

    indices: Tensor
    augmentation: AugmentationParameters | None

    def split(self, most: int) -> Iterator["InnerBatch"]:
        """The same batch in pieces of at most ``most`` images, of one size but for the last."""
        count = -(-len(self.indices) // most)
        size = -(-len(self.indices) // count)
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
    indices = torch.split(to_device(torch.cat(chosen[:steps]), like.device), sizes)
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
    ).on(like)
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
        network: its architecture, one for which `FlatNetwork.is_plain`.
        images_at_once: images in one pass through the network.
        compile: compile the work of a step.
    """

    def __init__(self, network: FlatNetwork, images_at_once: int, compile: bool) -> None:
        self._network = network
        self._images_at_once = images_at_once
        # What is differentiated keeps little: a CPU waits longer for memory than for norms and
        # activations that are computed again.
        self._step = Compiled(self._stepped, "the student's step", enabled=compile, recompute=True)
        # Eager, forwards takes more operations, and PyTorch knows not for all networks how.
        self._slopes = Compiled(
            self.slopes_forwards if network.batched else self.slopes,
            "the gradient through the student's step",
            enabled=compile,
            fallback=self.slopes,
        )

    def match(
        self,
        pool: Tensor,
        labels: Tensor,
        batches: Sequence[InnerBatch],
        step_size: Tensor,
        start: Tensor,
        target: Tensor,
        *,
        adjoint: bool,
    ) -> StudentResult:
        """Train from ``start``, and compare with ``target``.

        Args:
            pool: synthetic images, (P, C, H, W); its graph is not used.
            labels: (P,) int64.
            batches: of the steps.
            step_size: of the student's SGD, a scalar.
            start: the expert's parameters from which the student starts.
            target: the expert's parameters some epochs later.
            adjoint: keep the student's parameters of all steps and walk back, with the graph of one
                piece of one step at a time: memory does not grow with the steps, for more work.
                Else the graph of all steps is kept. The gradients are the same.
        """
        way = self._by_adjoint if adjoint else self._by_graph
        return way(pool.detach(), labels, batches, step_size.detach(), start, target)

    def _by_graph(
        self,
        pool: Tensor,
        labels: Tensor,
        batches: Sequence[InnerBatch],
        step_size: Tensor,
        start: Tensor,
        target: Tensor,
    ) -> StudentResult:
        """With the graph of everything."""
        step: Callable[..., list[Tensor]] = self._step
        if pool.device.type != "cpu":
            # A compiled function would be captured once for each step, with memory of its own.
            step = self._stepped
        step_size = step_size.requires_grad_()
        # The first step is compiled like the others, whose parameters have a graph.
        student = [part.requires_grad_() for part in self._parts(start)]
        pieces: list[InnerBatch] = []
        leaves: list[Tensor] = []
        for batch in batches:
            stepped = _twin(student)
            for piece in batch.split(self._images_at_once):
                pieces.append(piece)
                leaves.append(pool[piece.indices].requires_grad_())
                rest = _rest(piece, batch, labels, pool.dtype)
                stepped = step(student, stepped, step_size, leaves[-1], *rest)
            student = stepped
            # Autocast keeps casts of the parameters, which are others now.
            torch.clear_autocast_cache()
        loss = trajectory_matching_loss(self._network.joined(student), start, target)
        of_step_size, *found = torch.autograd.grad(loss, [step_size, *leaves])
        of_pool = torch.zeros_like(pool)
        for piece, of_chosen in zip(pieces, found, strict=True):
            _add(of_pool, piece, of_chosen)
        return StudentResult(loss.detach(), of_pool, of_step_size)

    def _by_adjoint(
        self,
        pool: Tensor,
        labels: Tensor,
        batches: Sequence[InnerBatch],
        step_size: Tensor,
        start: Tensor,
        target: Tensor,
    ) -> StudentResult:
        """With the graph of one piece at a time.

        With a step ``s' = s - a g(s, x)`` and the loss' gradient ``v'`` with respect to ``s'``, the
        gradients are ``v = v' - a d(g.v')/ds``, ``-a d(g.v')/dx`` and ``-g.v'`` for ``a``.
        """
        students = [self._parts(start)]
        with torch.no_grad():
            for batch in batches:
                stepped = _twin(students[-1])
                for piece in batch.split(self._images_at_once):
                    rest = _rest(piece, batch, labels, pool.dtype)
                    stepped = self._step(
                        students[-1], stepped, step_size, pool[piece.indices], *rest
                    )
                students.append(stepped)
                torch.clear_autocast_cache()
        # Named apart from the student's gradient: this is how the loss changes with the student.
        end = self._network.joined(students.pop())
        slope_at_end, loss = grad_and_value(trajectory_matching_loss)(end, start, target)
        adjoint = self._parts(slope_at_end)
        of_pool, of_step_size = torch.zeros_like(pool), torch.zeros_like(step_size)
        for batch in reversed(batches):
            student, stepped = students.pop(), adjoint
            for piece in batch.split(self._images_at_once):
                rest = _rest(piece, batch, labels, pool.dtype)
                with torch.no_grad():
                    of_student, of_chosen, slope = self._slopes(
                        student, pool[piece.indices], *rest, adjoint
                    )
                _add(of_pool, piece, -step_size * of_chosen)
                of_step_size -= slope
                stepped = [s - step_size * c for s, c in zip(stepped, of_student, strict=True)]
            adjoint = stepped
            torch.clear_autocast_cache()
        return StudentResult(loss, of_pool, of_step_size)

    def _parts(self, vector: Tensor) -> list[Tensor]:
        return self._network.parts(vector.detach(), self._step.enabled)

    # What is compiled.

    def _loss(
        self,
        parts: list[Tensor],
        images: Tensor,
        labels: Tensor,
        weights: Tensor,
        drawn: AugmentationParameters | None,
    ) -> Tensor:
        if drawn is not None:
            images = augment(images, drawn)
        if torch.compiler.is_compiling():
            # As convolutions are compiled; what is kept of a step need not be turned then.
            images = images.contiguous(memory_format=torch.channels_last)
        return self._network.loss(parts, images, labels, weights)

    def _stepped(
        self,
        parts: list[Tensor],
        stepped: list[Tensor],
        step_size: Tensor,
        images: Tensor,
        labels: Tensor,
        weights: Tensor,
        drawn: AugmentationParameters | None,
    ) -> list[Tensor]:
        """How far a piece of a batch takes the parameters, from where those before took them."""
        gradient = self._gradient_of(parts, images, labels, weights, drawn)
        return [part - step_size * g for part, g in zip(stepped, gradient, strict=True)]

    def _gradient_of(
        self,
        parts: list[Tensor],
        images: Tensor,
        labels: Tensor,
        weights: Tensor,
        drawn: AugmentationParameters | None,
    ) -> list[Tensor]:
        """Gradient of a piece's share in the loss of a step, like the parameters."""
        gradient: list[Tensor] = grad(self._loss)(parts, images, labels, weights, drawn)
        return gradient

    def slopes(
        self,
        parts: list[Tensor],
        images: Tensor,
        labels: Tensor,
        weights: Tensor,
        drawn: AugmentationParameters | None,
        direction: list[Tensor],
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """How the slope of a piece's loss along a direction changes.

        Args:
            parts: the student's parameters, as `FlatNetwork.parts`.
            images: (N, C, H, W), before augmentation.
            labels: (N,) int64.
            weights: (N,), shares in the loss.
            drawn: augmentation of each image, or None.
            direction: like the parameters.

        Returns:
            Gradients of the slope with respect to the parameters, and to the images; and the slope
            itself, a scalar.
        """

        def along(parts: list[Tensor], images: Tensor) -> Tensor:
            gradient = self._gradient_of(parts, images, labels, weights, drawn)
            # Not a matrix product, which autocast would round to bfloat16.
            products = [(g * d).sum() for g, d in zip(gradient, direction, strict=True)]
            return torch.stack(products).sum()

        (of_parts, of_images), slope = grad_and_value(along, argnums=(0, 1))(parts, images)
        return of_parts, of_images, slope

    def slopes_forwards(
        self,
        parts: list[Tensor],
        images: Tensor,
        labels: Tensor,
        weights: Tensor,
        drawn: AugmentationParameters | None,
        direction: list[Tensor],
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """The same as `slopes`, with the slope from a forward pass.

        It takes 8 convolutions where that takes 9, all of the usual kind; for the second derivative
        of a convolution's gradient PyTorch uses kernels as large as images.
        """

        def along(parts: list[Tensor], images: Tensor) -> Tensor:
            def loss(parts: list[Tensor]) -> Tensor:
                return self._loss(parts, images, labels, weights, drawn)

            slope: Tensor = jvp(loss, (parts,), (direction,))[1]
            return slope

        (of_parts, of_images), slope = grad_and_value(along, argnums=(0, 1))(parts, images)
        return of_parts, of_images, slope


def _twin(parts: list[Tensor]) -> list[Tensor]:
    """The same parameters as other tensors: the same twice would be compiled for itself."""
    return [part.view_as(part) for part in parts]


def _rest(
    piece: InnerBatch, batch: InnerBatch, labels: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, AugmentationParameters | None]:
    """Labels of a piece, (N,); of each image its share in the mean over the batch, (N,); draws."""
    share = 1 / len(batch.indices)
    weights = torch.full((len(piece.indices),), share, dtype=dtype, device=labels.device)
    return labels[piece.indices], weights, piece.augmentation


def _add(of_pool: Tensor, piece: InnerBatch, of_chosen: Tensor) -> None:
    # No index is there twice, so nothing depends on an order of additions.
    of_pool.index_add_(0, piece.indices, of_chosen)
