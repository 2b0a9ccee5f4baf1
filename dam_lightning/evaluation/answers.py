"""What trained networks take images for, many networks and many images at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dam_lightning.side_by_side import Networks

__all__ = ["Answers"]


class Answers:
    """The classes that trained networks of one architecture take images for.

    Args:
        networks: what computes them.
        modules: K trained networks.
        batch_size: images in a batch, at least as a rule.
        compile: by compiled functions.
    """

    def __init__(
        self, networks: Networks, modules: Sequence[nn.Module], batch_size: int, compile: bool
    ) -> None:
        self._networks = networks
        self._compile = compile
        together = networks.together(batch_size, None)
        self._states = networks.states(modules, min(together, len(modules)))
        self._piece = networks.piece(together, batch_size, None)

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (K, N) int64."""
        count = len(images)
        # In pieces of one size, for one compilation.
        rows = torch.arange(-(-count // self._piece) * self._piece, device=images.device)
        pieces = torch.split(images[rows.clamp(max=count - 1)], self._piece)
        answers = [
            torch.cat([self._answers(state, p) for p in pieces], 1) for state in self._states
        ]
        return torch.cat(answers)[:, :count]

    def _answers(self, state: list[Tensor], piece: Tensor) -> Tensor:
        return self._networks.answers(state, piece, compile=self._compile)
