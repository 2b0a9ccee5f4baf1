"""Log-variance features, the other source of pseudo-domains in the paper's ablation (table 6)."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["log_variance_features"]

_EPSILON = 1e-5
"""What the instance normalisation of PyTorch adds to a variance."""
_SMALLEST = 1e-12
"""Least variance whose logarithm is taken: an even image may have none at all."""


def log_variance_features(
    images: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> Tensor:
    """Log of the spatial variance of every channel after the first two convolutions of a ConvNet.

    A block is a 3x3 convolution, instance normalisation, ReLU and 2x2 average pooling. The variance
    is taken of what the convolution puts out, before it is normalised: afterwards it is the same
    for every image. Which features the paper's table 6 means it does not say.

    Args:
        images: normalised images, (N, C, H, W), at least 2x2.
        first: weight (K, C, 3, 3) and bias (K,) of the first convolution. One-channel images are
            padded by 3 pixels and others by 1, as in `dam_lightning.backbones.ConvNet`.
        second: weight (L, K, 3, 3) and bias (L,) of the second.

    Returns:
        (N, K + L), of the type of ``images``.

    Raises:
        ValueError: if ``images`` is not a four-dimensional floating tensor of at least 2x2.
    """
    if images.ndim != 4 or not images.is_floating_point() or min(images.shape[-2:]) < 2:
        raise ValueError(
            "images must be a floating (N, C, H, W) tensor of at least 2x2 pixels, "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    maps = F.conv2d(images, *first, padding=3 if images.shape[1] == 1 else 1)
    variance, mean = torch.var_mean(maps, dim=(-2, -1), correction=0, keepdim=True)
    # In place, as these are the largest tensors by far.
    normal = maps.sub_(mean).mul_((variance + _EPSILON).rsqrt())
    maps = F.conv2d(F.avg_pool2d(normal.relu_(), 2), *second, padding=1)
    variances = [variance.flatten(1), maps.var(dim=(-2, -1), correction=0)]
    return torch.cat(variances, dim=1).clamp_min(_SMALLEST).log()
