"""How many images are computed at once."""

import torch

from dam_lightning.allocation import keep_freed_memory

__all__ = ["images_at_once"]

_PIXELS_IN_CACHE = 32 * 32 * 32
"""Pixels whose widest activations stay in a processor's last cache (17 MB for 128 channels)."""


def images_at_once(device: torch.device, height: int, width: int, limit: int) -> int:
    """Images in one pass through a network, the fastest within a memory limit.

    On a CPU as many as its caches keep between two layers, whatever the limit beyond that: several
    passes are then up to twice as fast as one. Elsewhere the limit.

    Args:
        device: where they are computed.
        height: of an image, in pixels.
        width: of an image, in pixels.
        limit: most images whose activations may be in memory together.
    """
    if device.type != "cpu":
        return limit
    # What pieces of this size take and leave again and again.
    keep_freed_memory()
    return max(1, min(limit, _PIXELS_IN_CACHE // (height * width)))
