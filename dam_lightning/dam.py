"""The Domain-Aware Module: learnable spatial masks, one per synthetic image and pseudo-domain."""

from typing import Literal

import torch
from torch import Tensor, nn

from dam_lightning.functional import domain_views

__all__ = ["DomainAwareModule"]


class DomainAwareModule(nn.Module):
    """Turns synthetic images into one view per pseudo-domain (paper section 3.1, eq. 1 to 3).

    It is needed only while condensing: only the images are kept, so it adds nothing to the
    condensed set. It can be used in any condensation code::

        dam = DomainAwareModule(num_images=10, image_shape=(3, 32, 32))
        for domain, views in enumerate(dam(images)):
            loss = loss + dam.weight * matching_loss(real_images_of[domain], views)

    Args:
        num_images: number of synthetic images, M.
        image_shape: (C, H, W).
        num_domains: number of pseudo-domains, D.
        temperature: temperature of the softmax over the domains.
        init_value: initial value of every logit, or their standard deviation with
            ``init="normal"``.
        init: ``"constant"`` as the paper says. Because the softmax does not change when all logits
            are shifted, masks then start uniform, 1/D, whatever the value. ``"normal"`` draws from
            PyTorch's global generator.
        mask_channels: channels of a mask, C (as in the paper) or 1.
        weight: weight of the domain loss in the total (lambda in eq. 8). Kept here so that all of
            DAM's settings are in one place.

    Attributes:
        logits: the masks' parameter, (M, D, mask_channels, H, W).

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        num_images: int,
        image_shape: tuple[int, int, int],
        num_domains: int = 4,
        temperature: float = 0.1,
        init_value: float = 0.01,
        init: Literal["constant", "normal"] = "constant",
        mask_channels: int | None = None,
        weight: float = 0.1,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        for name, value in (("num_images", num_images), ("num_domains", num_domains)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if not weight >= 0:
            raise ValueError(f"weight must be 0 or above, got {weight}")
        if init not in ("constant", "normal"):
            raise ValueError(f"init must be constant or normal, got {init!r}")
        if mask_channels not in (None, 1, channels):
            raise ValueError(f"mask_channels must be 1 or {channels}, got {mask_channels}")
        self.num_domains = num_domains
        self.temperature = temperature
        self.weight = weight
        logits = torch.full(
            (num_images, num_domains, mask_channels or channels, height, width), float(init_value)
        )
        if init == "normal":
            logits = torch.randn_like(logits) * init_value
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        """Views of the images: (M, C, H, W) -> (D, M, C, H, W)."""
        return domain_views(images, self.logits, self.temperature)
