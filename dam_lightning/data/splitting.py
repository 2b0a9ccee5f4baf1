"""Holding out part of a set of images, the same share of every class of every domain."""

import numpy as np
import torch
from torch import Tensor

from dam_lightning.randomness import numpy_generator

__all__ = ["check_share", "held_out"]


def held_out(labels: Tensor, domains: Tensor, share: float, seed: int, stream: str) -> Tensor:
    """Choose images to be held out, by chance.

    The choice for a class of a domain depends on the seed, the stream, the two numbers and the
    images of this class and domain only.

    Args:
        labels: (N,) int64, the class of each image.
        domains: (N,) int64.
        share: of the images of each class of each domain, rounded; but at least one image, and not
            the last one. A single image is never held out.
        seed: with ``stream`` the key of the draw.
        stream: what is held out, and for what.

    Returns:
        (N,) bool, True for images held out.
    """
    chosen = np.zeros(len(labels), dtype=bool)
    pairs = np.stack([domains.numpy(), labels.numpy()], axis=1)
    cells, cell_of, sizes = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    members_of = np.split(np.argsort(cell_of, kind="stable"), np.cumsum(sizes)[:-1])
    for (domain, label), members in zip(cells.tolist(), members_of, strict=True):
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        generator = numpy_generator(seed, stream, step=domain, group=label)
        chosen[members[generator.permutation(len(members))[:count]]] = True
    return torch.from_numpy(chosen)


def check_share(name: str, share: float) -> None:
    """Refuse a share that leaves nothing on one side.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"{name} must be above 0 and below 1, got {share}")
