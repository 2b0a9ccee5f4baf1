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
            ``init="normal"``; ``init="one_hot"`` does not use it.
        init: ``"constant"`` as the paper says. Because the softmax does not change when all logits
            are shifted, masks then start uniform, 1/D, whatever the value. ``"normal"`` draws from
            PyTorch's global generator. ``"one_hot"`` gives each image as a whole to one domain,
            drawn likewise, and masks then never change: it belongs to random labels of real images
            (the data module's ``pseudo_labels``) in the paper's ablation (table 6). Of every D
            images in order, from the first, each goes to another domain; so domains are shared out
            equally over all images, and within each class too where D divides its images.
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
        init: Literal["constant", "normal", "one_hot"] = "constant",
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
        if init not in ("constant", "normal", "one_hot"):
            raise ValueError(f"init must be constant, normal or one_hot, got {init!r}")
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
        elif init == "one_hot":
            logits = _one_hot(logits, temperature)
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        """Views of the images: (M, C, H, W) -> (D, M, C, H, W)."""
        return domain_views(images, self.logits, self.temperature)


def _one_hot(logits: Tensor, temperature: float) -> Tensor:
    """Logits whose softmax is exactly 0 and 1, and therefore has gradients of exactly 0.

    That needs no parameter to be frozen, which optimisers and distributed strategies would notice.
    """
    num_images, num_domains = logits.shape[:2]
    rounds = -(-num_images // num_domains)
    orders = [torch.randperm(num_domains) for _ in range(rounds)]
    owners = torch.cat(orders)[:num_images]
    chosen = nn.functional.one_hot(owners, num_domains).view(num_images, num_domains, 1, 1, 1)
    # exp(-1000) is 0 in every floating type; nothing overflows in any.
    return (1000 * temperature * chosen).expand_as(logits).clone()
