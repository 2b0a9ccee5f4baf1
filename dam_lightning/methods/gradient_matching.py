"""The loss of DC and its gradient with respect to the images: second derivatives of networks."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from dam_lightning.compilation import Compiled
from dam_lightning.functional import gradient_matching_loss
from dam_lightning.methods.gradients import RepeatedDraws, added
from dam_lightning.methods.network_gradients import NetworkGradients

__all__ = ["GradientMatching", "Metric"]

Metric = Literal["layerwise_cosine", "mse", "cos"]
"""Distance of two gradients, see `gradient_matching_loss`."""


class GradientMatching:
    """Distance of the gradients on real and on synthetic images, and how it changes with these.

    Both are computed by functions that differentiate twice within themselves, because PyTorch
    (2.15) cannot differentiate what a compiled function differentiated.

    Args:
        gradients: of the network.
        metric: the distance.
    """

    def __init__(self, gradients: NetworkGradients, metric: Metric) -> None:
        self._gradients = gradients
        self._metric: Metric = metric
        compiles = gradients.compiles
        self._at_once = Compiled(self._matched, "the matching of gradients", enabled=compiles)
        self._slope = Compiled(self._along, "the second derivatives", enabled=compiles)

    def __call__(
        self,
        parts: list[Tensor],
        real: Tensor,
        weights: Tensor,
        synthetic: Tensor,
        labels: Tensor,
        most: int,
        whole: int,
        count: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compare.

        Args:
            parts: the network's parameters, from `NetworkGradients.parts`.
            real: (G, B, C, H, W).
            weights: (G, B), of each real image in its group's loss.
            synthetic: (G, I, C, H, W), which count alike.
            labels: (G,) int64.
            most: images of each group in one pass.
            whole: synthetic images of each group that may be taken at once, which saves computing
                their gradients twice; more are taken in pieces.
            count: as of `NetworkGradients.pieces`, for the real images.

        Returns:
            The distance, summed over the groups, and its gradient with respect to ``synthetic``,
            both without a graph.
        """
        gradients = self._gradients

        def repeated(images: Tensor) -> Tensor:
            return labels.unsqueeze(1).repeat(1, images.shape[1])

        with torch.no_grad():
            wanted = gradients.summed(parts, real, repeated(real), weights, most, count)
            images = synthetic.detach()
            uniform = torch.full_like(images[:, :, 0, 0, 0], 1 / images.shape[1])
            each = whole if images.shape[1] <= whole else min(most, whole)
            pieces = list(gradients.pieces(images, repeated(images), uniform, each))
            if len(pieces) == 1:
                return self._at_once(parts, wanted, *pieces[0][1:])
            # All gradients before any of their slopes, which depend on the sum of them; so each is
            # computed twice, and the graph of one piece is there at a time.
            found: list[Tensor] | None = None
            draws = []
            for piece in pieces:
                draws.append(self._draws(images.device))
                found = added(found, gradients(parts, piece))
            assert found is not None
            direction, value = grad_and_value(self._distance)(found, wanted)
            slope = torch.zeros_like(images)
            for piece, drawn in zip(pieces, draws, strict=True):
                with drawn:
                    slope[:, piece.rows] += self._slope(parts, direction, *piece[1:])
            return value, slope

    def _draws(self, device: torch.device) -> AbstractContextManager[None]:
        """Draws of a forward pass that comes now, for its repetition."""
        return nullcontext() if self._gradients.is_plain else RepeatedDraws(device).again()

    def _matched(
        self,
        parts: list[Tensor],
        wanted: list[Tensor],
        images: Tensor,
        labels: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Distance, and its gradient with respect to the images."""

        def distance(images: Tensor) -> Tensor:
            found = self._gradients.uncompiled(parts, images, labels, weights)
            return self._distance(found, wanted)

        slope, value = grad_and_value(distance)(images)
        return value, slope

    def _along(
        self,
        parts: list[Tensor],
        direction: list[Tensor],
        images: Tensor,
        labels: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """Gradient, with respect to the images, of their parameter gradient along a direction."""

        def along(images: Tensor) -> Tensor:
            found = self._gradients.uncompiled(parts, images, labels, weights)
            # Not a matrix product, which autocast would round to bfloat16.
            products = [(f * d).sum() for f, d in zip(found, direction, strict=True)]
            return torch.stack(products).sum()

        slope: Tensor = grad(along)(images)
        return slope

    def _distance(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """Of gradients (G, ...) of each part, summed over the groups."""
        if len(wanted[0]) == 1:
            return self._of_one_group([f[0] for f in found], [w[0] for w in wanted])
        distances: Tensor = vmap(self._of_one_group)(found, wanted)
        return distances.sum()

    def _of_one_group(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        shaped = self._gradients.network.shaped
        return gradient_matching_loss(shaped(wanted), shaped(found), self._metric)
