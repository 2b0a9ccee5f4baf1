"""Training of a network on a few images, inside a condensation step, without a data loader."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dam_lightning.functional import AugmentationParameters, augment, augmentation_parameters
from dam_lightning.functional.host import to_device
from dam_lightning.methods.network_gradients import NetworkGradients
from dam_lightning.randomness import numpy_generator

__all__ = ["InnerTraining"]


class _Batch(NamedTuple):
    """One step's draws, on the device of the images.

    Attributes:
        indices: (N,) int64.
        augmentation: of each image, (1, N, ...), or None.
        valid: leading images that count; the others fill the batch up.
    """

    indices: Tensor
    augmentation: AugmentationParameters | None
    valid: int


class InnerTraining:
    """Epochs of SGD without momentum, as `train` runs them.

    Args:
        epochs: passes over all images.
        lr: step size.
        batch_size: images in a step; all of them, reshuffled each epoch.
        operations: DSA strategy as `dam_lightning.functional.strategy_operations` gives it, one
            operation for each batch, parameters of its own for each image; empty: no augmentation.
        seed: key of all draws.
    """

    def __init__(
        self, epochs: int, lr: float, batch_size: int, operations: tuple[int, ...], seed: int
    ) -> None:
        self.epochs = epochs
        self._lr = lr
        self._batch_size = batch_size
        self._operations = operations
        self._seed = seed

    def train(
        self,
        gradients: NetworkGradients,
        vector: Tensor,
        images: Tensor,
        labels: Tensor,
        stream: str,
        step: int,
        most: int | None = None,
        augment: Callable[[Tensor, AugmentationParameters], Tensor] = augment,
    ) -> Tensor:
        """Train.

        Args:
            gradients: of the network, which is in the mode it is to be trained in; buffers of
                normalisations are updated.
            vector: parameters to begin with, (P,).
            images: (N, C, H, W), normalised.
            labels: (N,) int64.
            stream: what the draws are for; with ``step`` their key.
            step: of the optimisation.
            most: images in one pass; None: a batch. Networks that are not plain, see
                `FlatNetwork.is_plain`, take a batch in any case.
            augment: as `dam_lightning.functional.augment`.

        Returns:
            The trained parameters, (P,).
        """
        parts = gradients.parts(vector.detach())
        largest = min(self._batch_size, len(images))
        most = most if most and gradients.is_plain else largest
        # A smaller last batch is filled up to the size of a piece, to be compiled for no other.
        least = min(most, largest) if gradients.compiles else 0
        with torch.no_grad():
            for indices, augmentation, count in self._batches(images, stream, step, least):
                batch = images[indices].unsqueeze(0)
                if augmentation is not None:
                    batch = augment(batch, augmentation)
                rows = torch.arange(len(indices), device=images.device).unsqueeze(0)
                weights = (rows < count).to(images.dtype) / count
                targets = labels[indices].unsqueeze(0)
                found = gradients.summed(parts, batch, targets, weights, most)
                parts = [
                    torch.sub(part, gradient[0], alpha=self._lr)
                    for part, gradient in zip(parts, found, strict=True)
                ]
                # Autocast keeps casts of the parameters, which are others now.
                torch.clear_autocast_cache()
        return gradients.network.joined(parts)

    def _batches(self, like: Tensor, stream: str, step: int, least: int) -> Iterator[_Batch]:
        """All steps, filled up to ``least`` images, for N images ``like`` (N, C, H, W)."""
        orders, counts, operations, uniforms = [], [], [], []
        for epoch in range(self.epochs):
            generator = numpy_generator(self._seed, stream, step, epoch)
            order = torch.from_numpy(generator.permutation(len(like)))
            for chosen in torch.split(order, self._batch_size):
                rows = torch.arange(max(len(chosen), least)).remainder(len(chosen))
                orders.append(chosen[rows])
                counts.append(len(chosen))
                if self._operations:
                    operations.append(int(generator.choice(self._operations)))
                    uniforms.append(torch.from_numpy(generator.random((len(chosen), 3)))[rows])
        if not orders:
            return
        sizes = [len(order) for order in orders]
        # One copy to the device for the whole training.
        indices = torch.split(to_device(torch.cat(orders), like.device), sizes)
        if not self._operations:
            yield from (
                _Batch(own, None, count) for own, count in zip(indices, counts, strict=True)
            )
            return
        height, width = like.shape[-2:]
        parameters = augmentation_parameters(
            torch.from_numpy(np.repeat(operations, sizes)),
            torch.cat(uniforms),
            (height, width),
        ).on(like)
        split = zip(*(torch.split(t.unsqueeze(0), sizes, 1) for t in parameters), strict=True)
        for own, drawn, count in zip(indices, split, counts, strict=True):
            yield _Batch(own, AugmentationParameters(*drawn), count)
