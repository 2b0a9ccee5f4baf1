"""Which groups a process works on in a step, and how their images are augmented."""

from collections.abc import Sequence

import torch

from dam_lightning.functional import AugmentationParameters, augmentation_parameters
from dam_lightning.randomness import numpy_generator

__all__ = ["augmentation_draws", "dealt_out"]


def dealt_out(count: int, rank: int, world_size: int, first: int = 0) -> range:
    """A process's share of ``count`` groups, dealt out one by one beginning with process ``first``.

    Beginning the pseudo-domains where the classes ended keeps the shares of all groups together
    equal up to one.
    """
    return range((rank - first) % world_size, count, world_size)


def augmentation_draws(
    operations: Sequence[int],
    rows: Sequence[int],
    image_size: tuple[int, int],
    *,
    seed: int,
    branch: str,
    step: int,
) -> AugmentationParameters:
    """Draw one augmentation for each of some groups, each by a key of its own.

    Args:
        operations: the strategy, from `dam_lightning.functional.strategy_operations`.
        rows: numbers of the groups, G of them.
        image_size: (H, W).
        seed: of the run.
        branch: ``"class"`` or ``"domain"``.
        step: of the optimisation.

    Returns:
        Parameters for the groups, (G, ...), on the CPU in float64, so that every device and
        precision sees the same.
    """
    generators = [numpy_generator(seed, f"augmentation/{branch}", step, row) for row in rows]
    chosen = torch.tensor([int(generator.choice(operations)) for generator in generators])
    uniforms = torch.stack([torch.from_numpy(generator.random(3)) for generator in generators])
    return augmentation_parameters(chosen, uniforms, image_size)
