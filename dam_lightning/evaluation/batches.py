"""Batches of several networks' training sets, gathered at once, with what augments them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dam_lightning.data.sampling import RealImages
from dam_lightning.evaluation.recipe import Recipe
from dam_lightning.functional import strategy_operations
from dam_lightning.functional.host import to_device
from dam_lightning.randomness import numpy_generator, torch_generator
from dam_lightning.side_by_side import Draws

__all__ = ["Batches", "Step"]


class Step(NamedTuple):
    """What E networks are trained on in a step.

    Attributes:
        images: (E, N, C, H, W), normalised, not augmented.
        labels: (E, N) int64.
        draws: how the images are to be augmented; None: not.
    """

    images: Tensor
    labels: Tensor
    draws: Draws | None


class Batches:
    """Training sets of E networks, M images each, all of one kind, in batches.

    Sets that are the same are in memory once.

    Args:
        sets: images and labels of each network: normalised (M, C, H, W), or real images, which are
            normalised batch by batch; and (M,) int64.
        recipe: its batch size and augmentation are used.
        seed: key of orders and augmentation.
        stream: what the networks are for; further part of the key.
        numbers: which networks these are; further part of the key.
    """

    def __init__(
        self,
        sets: Sequence[tuple[Tensor | RealImages, Tensor]],
        recipe: Recipe,
        seed: int,
        stream: str,
        numbers: Sequence[int],
    ) -> None:
        self._size = recipe.batch_size
        self._seed = seed
        self._stream = stream
        self._numbers = numbers
        self._labels = torch.stack([labels for _, labels in sets])
        self._device = self._labels.device
        self._operations: Tensor | None = None
        if recipe.augmentation is not None:
            operations = torch.tensor(strategy_operations(recipe.augmentation))
            self._operations = to_device(operations, self._device)
        self._real = [images for images, _ in sets if isinstance(images, RealImages)]
        tensors = [images for images, _ in sets if isinstance(images, Tensor)]
        if tensors:
            first = tensors[0]
            same = all(other is first or torch.equal(other, first) for other in tensors[1:])
            self._pool = (first if same else torch.cat(tensors)).detach()
            each = torch.arange(len(tensors), device=self._device).unsqueeze(1)
            self._places = each * (0 if same else len(first))

    @property
    def size(self) -> int:
        """Images of a network in a step; in the last of an epoch there may be fewer."""
        return min(self._size, self._labels.shape[1])

    def epoch(self, number: int) -> Iterator[Step]:
        """All images of an epoch, counted from 0; the host does not wait for the device."""
        count = self._labels.shape[1]
        orders = torch.stack([self._order(number, network, count) for network in self._numbers])
        rows = to_device(orders, self._device)
        generators = [self._generator(number, network) for network in self._numbers]
        for start in range(0, count, self._size):
            part = slice(start, start + self._size)
            labels = self._labels.gather(1, rows[:, part])
            if self._real:
                # By rows on the host, where real images may be too.
                picked = zip(self._real, orders[:, part], strict=True)
                images = torch.stack([real[order] for real, order in picked])
            else:
                images = self._pool[rows[:, part] + self._places]
            yield Step(images, labels, self._drawn(generators, labels.shape[1]))

    def _order(self, epoch: int, network: int, count: int) -> Tensor:
        generator = numpy_generator(self._seed, f"{self._stream}/order", epoch, network)
        return torch.from_numpy(generator.permutation(count))

    def _generator(self, epoch: int, network: int) -> torch.Generator:
        stream = f"{self._stream}/augmentation"
        return torch_generator(self._device, self._seed, stream, epoch, network)

    def _drawn(self, generators: Sequence[torch.Generator], count: int) -> Draws | None:
        """One operation for a network's batch, numbers of its own for each image, as published."""
        if self._operations is None:
            return None
        choices, uniforms = [], []
        for generator in generators:
            choice = torch.randint(
                len(self._operations), (1,), generator=generator, device=self._device
            )
            choices.append(choice)
            uniforms.append(torch.rand(count, 3, generator=generator, device=self._device))
        return Draws(self._operations[torch.cat(choices)], torch.stack(uniforms))
