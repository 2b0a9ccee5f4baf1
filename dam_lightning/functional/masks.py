"""The domain masks of DAM: equations 1 to 3 of the paper (arXiv 2505.22387, section 3.1)."""

from torch import Tensor

__all__ = ["domain_views", "domain_weights"]


def domain_weights(logits: Tensor, temperature: float = 0.1) -> Tensor:
    """Share of each pseudo-domain in every pixel (eq. 1).

    Args:
        logits: mask logits z, (M, D, C, H, W) for M images and D pseudo-domains; C may be 1.
        temperature: softmax temperature; small values give peaked masks.

    Returns:
        Weights of the same shape, positive, summing to 1 over D.

    Raises:
        ValueError: if ``logits`` is not five-dimensional or ``temperature`` is not positive.
    """
    if logits.ndim != 5:
        raise ValueError(f"logits must be (M, D, C, H, W), got shape {tuple(logits.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return (logits / temperature).softmax(dim=1)


def domain_views(images: Tensor, logits: Tensor, temperature: float = 0.1) -> Tensor:
    """Every image as each pseudo-domain sees it (eq. 2); an image's views add up to it (eq. 3).

    Args:
        images: synthetic images, (M, C, H, W), in normalised space.
        logits: mask logits, (M, D, C, H, W) or (M, D, 1, H, W) for masks shared by the channels.
        temperature: softmax temperature.

    Returns:
        Views, (D, M, C, H, W).

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    weights = domain_weights(logits, temperature)
    fits = images.ndim == 4 and images.shape[::3] == weights.shape[::4]
    if not (
        fits
        and images.shape[-2:] == weights.shape[-2:]
        and weights.shape[2] in (1, images.shape[1])
    ):
        raise ValueError(
            f"images {tuple(images.shape)} must be (M, C, H, W) and logits {tuple(logits.shape)} "
            "(M, D, C or 1, H, W) with the same M, H and W"
        )
    return (images.unsqueeze(1) * weights).transpose(0, 1)
