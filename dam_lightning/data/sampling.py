"""Some or all of the real training images, from any data module, normalised."""

from typing import Any

import torch
from torch import Tensor

from dam_lightning.data.groups import GroupIndex
from dam_lightning.data.normalisation import Normalisation
from dam_lightning.functional.host import to_device

__all__ = ["RealImages", "check_class_sizes", "random_images"]


class RealImages:
    """The training images of a data module, of which only those asked for are ever normalised.

    Args:
        data: a data module after its ``setup``; its ``train``, ``mean``, ``std`` and, where it has
            one, ``whitening`` are used.
        device: where normalised images are wanted; None: where the data module has its images.
    """

    def __init__(self, data: Any, device: torch.device | None = None) -> None:
        self._split = data.train
        self._normalisation = Normalisation(
            data.mean, data.std, getattr(data, "whitening", None), device or self._pixels.device
        )

    @property
    def _pixels(self) -> Tensor:
        pixels: Tensor = self._split.images
        return pixels

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return self._pixels.shape

    @property
    def device(self) -> torch.device:
        """Where normalised images are."""
        return self._normalisation.device

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Gather and normalise some images.

        Args:
            rows: (B,) int64 image numbers. On the host, where the images may be too.

        Returns:
            (B, C, H, W) float32 on :attr:`device`.
        """
        pixels = self._pixels
        return self._normalisation(pixels[to_device(rows, pixels.device)])


def check_class_sizes(data: Any, per_class: int) -> None:
    """Refuse to take more images of a class than it has.

    Args:
        data: a data module after its ``setup``; its ``train`` and ``class_names`` are used.
        per_class: images of each class.

    Raises:
        ValueError: a class has fewer training images.
    """
    sizes = torch.bincount(data.train.labels.cpu(), minlength=len(data.class_names)).tolist()
    for name, size in zip(data.class_names, sizes, strict=True):
        if size < per_class:
            raise ValueError(
                f"class {name!r} has {size} training images, but {per_class} are asked for; use a "
                "smaller ipc"
            )


def random_images(data: Any, per_class: int, seed: int, stream: str, step: int = 0) -> Tensor:
    """Draw real training images without replacement, class by class.

    Args:
        data: a data module after its ``setup``; its ``train``, ``class_names``, ``mean``,
            ``std`` and, where it has one, ``whitening`` are used.
        per_class: images of each class.
        seed: with ``stream`` and ``step`` the key of the draw.
        stream: what the draw is for.
        step: a counter within the stream.

    Returns:
        (num_classes * per_class, C, H, W) float32, normalised, where the data module has its
        images.

    Raises:
        ValueError: if a class has fewer images.
    """
    check_class_sizes(data, per_class)
    index = GroupIndex(data.train.labels.cpu(), data.class_names)
    indices, _ = index.draw(per_class, seed, stream, step)
    return RealImages(data)[indices.flatten()]
