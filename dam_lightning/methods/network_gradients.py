"""Gradients of a network's loss with respect to its parameters, compiled, and in pieces."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dam_lightning.compilation import Compiled
from dam_lightning.flat_network import NOT_PLAIN, FlatNetwork
from dam_lightning.methods.gradients import added

__all__ = ["NetworkGradients", "Piece"]


class Piece(NamedTuple):
    """Some images of each of G groups.

    Attributes:
        rows: which of their group's.
        images: (G, N, C, H, W).
        labels: (G, N) int64.
        weights: (G, N), 0 for images that do not count.
    """

    rows: slice
    images: Tensor
    labels: Tensor
    weights: Tensor


class NetworkGradients:
    """Gradients of the weighted cross entropy, of several groups of images at once or of one.

    Parameters are taken and gradients given as `parts`, a list of tensors; in gradients each has a
    first dimension for the groups.

    Args:
        network: the architecture.
        image_shape: (C, H, W).
        device: where the network is.
        compile: compile what can be: networks for which `FlatNetwork.is_plain`.

    Attributes:
        network: as given.
        is_plain: `FlatNetwork.is_plain`.
    """

    def __init__(
        self,
        network: FlatNetwork,
        image_shape: tuple[int, int, int],
        device: torch.device,
        compile: bool,
    ) -> None:
        self.network = network
        self.is_plain = network.is_plain(image_shape, device)
        if compile and not self.is_plain:
            rank_zero_info(NOT_PLAIN)
        self._of_piece = Compiled(
            self.uncompiled, "the networks' gradients", enabled=compile and self.is_plain
        )

    @property
    def compiles(self) -> bool:
        """Whether it is compiled."""
        return self._of_piece.enabled

    def parts(self, vector: Tensor) -> list[Tensor]:
        """Parameters (P,) as `FlatNetwork.parts`."""
        return self.network.parts(vector, self.compiles)

    def uncompiled(
        self, parts: list[Tensor], images: Tensor, labels: Tensor, weights: Tensor
    ) -> list[Tensor]:
        """Gradients of a piece, for functions that are compiled or differentiate them."""
        return list(self.network.gradients(parts, images, labels, weights))

    def __call__(self, parts: list[Tensor], piece: Piece) -> list[Tensor]:
        """Gradient of each group's loss on a piece, (G, ...) of each part."""
        if len(piece.images) == 1 and not self.compiles:
            return self._by_autograd(parts, piece)
        return self._of_piece(parts, piece.images, piece.labels, piece.weights)

    def _by_autograd(self, parts: list[Tensor], piece: Piece) -> list[Tensor]:
        """Of one group: faster than by ``torch.func``, which cannot update buffers either."""
        leaves = [part.detach().requires_grad_() for part in parts]
        with torch.enable_grad():
            loss = self.network.loss(leaves, piece.images[0], piece.labels[0], piece.weights[0])
        found = torch.autograd.grad(loss, leaves, materialize_grads=True)
        return [gradient.unsqueeze(0) for gradient in found]

    def pieces(
        self,
        images: Tensor,
        labels: Tensor,
        weights: Tensor,
        most: int,
        count: int | None = None,
    ) -> Iterator[Piece]:
        """Images in pieces of one size, so that one compilation serves for all.

        Where the size does not divide their number, the last piece repeats images of the one before
        with a weight of 0.

        Args:
            images: (G, N, C, H, W).
            labels: (G, N) int64.
            weights: (G, N).
            most: images of each group in a piece.
            count: leading images that count, where it is known that no later one of any group does;
                None: all.
        """
        width = images.shape[1]
        each = math.ceil(width / math.ceil(width / most))
        for start in range(0, count or width, each):
            first = min(start, width - each)
            rows = slice(first, first + each)
            own = _cut(weights, rows)
            if first < start:
                own = own.clone()
                own[:, : start - first] = 0
            yield Piece(rows, _cut(images, rows), _cut(labels, rows), own)

    def summed(
        self,
        parts: list[Tensor],
        images: Tensor,
        labels: Tensor,
        weights: Tensor,
        most: int,
        count: int | None = None,
    ) -> list[Tensor]:
        """Gradient of each group's loss on all images; arguments as of `pieces`."""
        total: list[Tensor] | None = None
        for piece in self.pieces(images, labels, weights, most, count):
            total = added(total, self(parts, piece))
        assert total is not None
        return total


def _cut(tensor: Tensor, rows: slice) -> Tensor:
    """``tensor[:, rows]``, with the same strides from wherever it is cut."""
    cut = tensor[:, rows]
    return cut[0].contiguous().unsqueeze(0) if len(cut) == 1 else cut.contiguous()
