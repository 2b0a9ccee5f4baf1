"""ZCA whitening, the normalisation of trajectory matching on small images.

The formulas are those of kornia's ``ZCAWhitening``, which the original of MTT (Cazenavette et al.,
CVPR 2022) applies with a regulariser of 0.1 to images in [0, 1], in place of means and standard
deviations of channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Whitening", "same_whitening", "unwhiten", "whiten", "zca_matrix"]

_CHUNK = 1024
"""Images that are in memory in float64 together (32x32 RGB: 25 MB)."""


class Whitening(NamedTuple):
    """A fitted whitening of images of F = C * H * W values."""

    mean: Tensor
    """(F,) float32: the mean image, in units of pixels in [0, 1]."""
    matrix: Tensor
    """(F, F) float32, symmetric."""


def zca_matrix(images: Tensor, epsilon: float = 0.1) -> tuple[Tensor, Tensor]:
    """Fit the whitening: U diag(1 / sqrt(S + epsilon)) U^T of the covariance U diag(S) U^T.

    The covariance is taken over images, divided by N - 1. Whitened images have the covariance
    U diag(S / (S + epsilon)) U^T. Computed in float64; beside the images, memory is needed for a
    few matrices of F x F and not for another copy of the images.

    Args:
        images: (N, C, H, W), uint8 in 0..255 or floating in [0, 1].
        epsilon: added to the variances, so that directions in which the images hardly differ are
            not blown up.

    Returns:
        The mean image (F,) and the matrix (F, F), both float64 on the device of ``images``.

    Raises:
        ValueError: there are fewer than two images, they are not four-dimensional, or ``epsilon``
            is not positive.
    """
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(
            f"images must be (N, C, H, W) with N at least 2, got shape {tuple(images.shape)}"
        )
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon}")
    chunks = torch.split(images, _CHUNK)
    total = torch.stack([_flat(chunk).sum(dim=0) for chunk in chunks]).sum(dim=0)
    mean = total / len(images)
    covariance = mean.new_zeros(len(mean), len(mean))
    # Centred before it is squared: the difference of two large sums would lose digits.
    for chunk in chunks:
        centred = _flat(chunk) - mean
        covariance.addmm_(centred.T, centred)
    variances, directions = torch.linalg.eigh(covariance / (len(images) - 1))
    # Variances of zero come out a little below it.
    scales = (variances.clamp_min(0) + epsilon).rsqrt()
    return mean, (directions * scales) @ directions.T


def whiten(images: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """Whiten images: (x - mean) times the matrix.

    Args:
        images: (..., C, H, W) in [0, 1], of the type and on the device of the other two.
        mean: (F,) with F = C * H * W, of :func:`zca_matrix`.
        matrix: (F, F), of :func:`zca_matrix`.

    Returns:
        As ``images``, whitened.
    """
    # A step under autocast must not see its images in half precision.
    with torch.autocast(images.device.type, enabled=False):
        return ((images.reshape(-1, len(mean)) - mean) @ matrix).view(images.shape)


def unwhiten(images: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """Undo :func:`whiten`, by solving with the matrix: its inverse is nowhere needed.

    Args:
        images: (..., C, H, W), whitened.
        mean: as for :func:`whiten`.
        matrix: as for :func:`whiten`.

    Returns:
        As ``images``, in [0, 1] where the images were (and a rounding error outside).
    """
    flat: Tensor = torch.linalg.solve(matrix, images.reshape(-1, len(mean)), left=False)
    return (flat + mean).reshape(images.shape)


def same_whitening(ours: Whitening, theirs: Whitening) -> bool:
    """Whether two machines may have computed both from the same images."""
    return all(
        a.shape == b.shape and torch.allclose(a.cpu(), b.cpu(), rtol=1e-4, atol=1e-5)
        for a, b in zip(ours, theirs, strict=True)
    )


def _flat(images: Tensor) -> Tensor:
    """(N, F) float64 in [0, 1]."""
    flat = images.flatten(1).double()
    return flat if images.is_floating_point() else flat / 255
