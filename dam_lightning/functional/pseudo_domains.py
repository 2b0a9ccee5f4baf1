"""Pseudo-domain labels from low-frequency amplitude: eq. 4 and 5 of the paper (section 3.2)."""

import math

import torch
from torch import Tensor

__all__ = ["low_frequency_amplitude", "rank_groups"]


def low_frequency_amplitude(images: Tensor, ratio: float = 0.1) -> Tensor:
    """Mean amplitude of the lowest frequencies of each image (eq. 4, 5).

    The discrete Fourier transform is taken per colour channel; the amplitude is averaged over the
    channels and over a window of (2b + 1) x (2b + 1) frequencies around zero, with
    b = floor(ratio * min(H, W)). The paper does not print its cropping ratio; window and default
    are those of FDA (Yang and Soatto, CVPR 2020), which it cites.

    Args:
        images: raw images in [0, 1], (N, C, H, W), any floating type; before normalisation, which
            would mix up dark and bright images.
        ratio: half the width of the window as a share of the shorter side, in [0, 0.5).

    Returns:
        One score per image, (N,), of the type of ``images``.

    Raises:
        ValueError: if ``images`` is not a four-dimensional floating tensor or ``ratio`` is out of
            range.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            "images must be a floating (N, C, H, W) tensor in [0, 1], "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    if not 0 <= ratio < 0.5:
        raise ValueError(f"ratio must be in [0, 0.5), got {ratio}")
    half = math.floor(ratio * min(images.shape[-2:]))
    # Zero frequency is index 0 and negative frequencies count from the end, so no shift is needed.
    window = torch.arange(-half, half + 1, device=images.device)
    # Transforms of half precision exist on few devices.
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    spectrum: Tensor = torch.fft.fft2(exact)
    low = spectrum.index_select(-2, window % images.shape[-2])
    low = low.index_select(-1, window % images.shape[-1])
    return low.abs().mean(dim=(-3, -2, -1)).to(images.dtype)


def rank_groups(scores: Tensor, num_groups: int) -> Tensor:
    """Sort the scores and cut them into groups of equal size (section 3.2).

    Args:
        scores: one score per image, (N,).
        num_groups: number of groups, D.

    Returns:
        Labels, (N,) int64: floor(D * rank / N) with the rank counted from the smallest score; equal
        scores keep their order. Group sizes differ by at most one.

    Raises:
        ValueError: if ``num_groups`` is below 1, or a score is not finite.
    """
    if scores.ndim != 1:
        raise ValueError(f"scores must be one-dimensional, got shape {tuple(scores.shape)}")
    if num_groups < 1:
        raise ValueError(f"num_groups must be at least 1, got {num_groups}")
    if not bool(scores.isfinite().all()):
        raise ValueError("scores must be finite")
    order = scores.argsort(stable=True)
    positions = torch.arange(len(scores), device=scores.device)
    labels = torch.empty_like(positions)
    labels[order] = positions * num_groups // max(1, len(scores))
    return labels
