"""From pixels to what networks see."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dam_lightning.functional import Whitening, whiten
from dam_lightning.functional.host import to_device

__all__ = ["Normalisation", "channel_statistics"]

_CHUNK = 4096
"""Images that are summed together."""


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of pixels in [0, 1], to 4 decimals.

    Args:
        images: (N, C, H, W) uint8.
    """
    sums = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for chunk in torch.split(images, _CHUNK):
        values = chunk.cpu().double().div_(255)
        sums += torch.stack([values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3))])
    mean, square = sums / (images.numel() / images.shape[1])
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    # Channels that do not vary are not divided by 0.
    deviation[deviation < 1e-4] = 1.0
    return tuple(mean.numpy().round(4).tolist()), tuple(deviation.numpy().round(4).tolist())


class Normalisation:
    """Turns uint8 pixels into normalised float32 on a device: (x / 255 - mean) / std, or whitening.

    Args:
        mean: one value a channel, in units of pixels in [0, 1].
        std: as ``mean``.
        whitening: takes the place of ``mean`` and ``std``, which are then not used.
        device: where normalised images are wanted.
    """

    __slots__ = ("_mean", "_std", "_whitening")

    def __init__(
        self,
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
        whitening: Whitening | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._mean, self._std = (
            torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1).to(device)
            for values in (mean, std)
        )
        self._whitening = whitening and Whitening(*(part.to(device) for part in whitening))

    @property
    def device(self) -> torch.device:
        """Where normalised images are."""
        return self._mean.device

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise images; the host does not wait for the device.

        Args:
            pixels: (..., C, H, W) uint8 on any device.

        Returns:
            The same shape, float32 on :attr:`device`.
        """
        # A copy also of what is float32 already, since the rest is done in place.
        images = to_device(pixels, self.device).to(torch.float32, copy=True).div_(255)
        if self._whitening is None:
            return images.sub_(self._mean).div_(self._std)
        return whiten(images, *self._whitening)
