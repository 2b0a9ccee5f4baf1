"""What the base methods compare: the losses of DM, DC and MTT."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dam_lightning.functional.host import host_values, to_device

__all__ = ["distribution_matching_loss", "gradient_matching_loss", "trajectory_matching_loss"]


def distribution_matching_loss(
    real_features: Tensor, synthetic_features: Tensor, real_counts: Tensor | None = None
) -> Tensor:
    """Squared distance of the mean embeddings, summed over groups and features.

    Zhao and Bilen, Dataset Condensation with Distribution Matching (WACV 2023); ``main_DM.py`` of
    VICO-UoE/DatasetCondensation.

    Args:
        real_features: embeddings of the real images of each group, (G, B, F).
        synthetic_features: embeddings of the synthetic images of each group, (G, I, F).
        real_counts: (G,) integers, how many leading rows of each real group count; all without it.

    Returns:
        A scalar.

    Raises:
        ValueError: if the shapes do not fit, or a group counts no row or more rows than it has.
    """
    if (
        real_features.ndim != 3
        or synthetic_features.ndim != 3
        or real_features.shape[::2] != synthetic_features.shape[::2]
    ):
        raise ValueError(
            "features must be (G, B, F) and (G, I, F) with the same G and F, got "
            f"{tuple(real_features.shape)} and {tuple(synthetic_features.shape)}"
        )
    if real_counts is None:
        real_means = real_features.mean(dim=1)
    else:
        if real_counts.shape != real_features.shape[:1]:
            raise ValueError(
                f"real_counts must be ({real_features.shape[0]},), got {tuple(real_counts.shape)}"
            )
        seen = host_values(real_counts)
        if seen is not None and not ((seen >= 1) & (seen <= real_features.shape[1])).all():
            raise ValueError(
                f"real_counts must lie in 1..{real_features.shape[1]}, got {real_counts.tolist()}"
            )
        counts = to_device(real_counts, real_features.device).unsqueeze(1)
        positions = torch.arange(real_features.shape[1], device=real_features.device)
        # Rows past the count are replaced, not multiplied by zero: they may hold anything.
        valid = (positions < counts).unsqueeze(2)
        real_means = real_features.where(valid, 0).sum(dim=1) / counts
    return (real_means - synthetic_features.mean(dim=1)).square().sum()


def gradient_matching_loss(
    real_gradients: Sequence[Tensor],
    synthetic_gradients: Sequence[Tensor],
    metric: Literal["layerwise_cosine", "mse", "cos"] = "layerwise_cosine",
) -> Tensor:
    """Distance between two gradients of one network.

    Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching (ICLR 2021); ``utils.py`` of
    VICO-UoE/DatasetCondensation.

    Args:
        real_gradients: gradient of each parameter on real images, in parameter order.
        synthetic_gradients: the same on synthetic images.
        metric: ``"layerwise_cosine"`` sums 1 - cosine over the output rows of every weight and
            leaves one-dimensional parameters out; ``"mse"`` is the sum of squared differences of
            the whole gradient; ``"cos"`` is 1 - cosine of the whole gradient.

    Returns:
        A scalar.

    Raises:
        ValueError: if the gradients do not fit each other or the metric is unknown.
    """
    if [g.shape for g in real_gradients] != [g.shape for g in synthetic_gradients]:
        raise ValueError("real and synthetic gradients must have the same shapes in the same order")
    if not real_gradients:
        raise ValueError("there is no gradient to compare")
    pairs = list(zip(real_gradients, synthetic_gradients, strict=True))
    if metric == "layerwise_cosine":
        distances = [
            _cosine_distance(real.flatten(1), synthetic.flatten(1)).sum()
            for real, synthetic in pairs
            if real.ndim > 1
        ]
        return torch.stack(distances).sum() if distances else real_gradients[0].new_zeros(())
    real = torch.cat([g.flatten() for g, _ in pairs])
    synthetic = torch.cat([g.flatten() for _, g in pairs])
    if metric == "mse":
        return (real - synthetic).square().sum()
    if metric == "cos":
        return _cosine_distance(real, synthetic)
    raise ValueError(f"metric must be layerwise_cosine, mse or cos, got {metric!r}")


def _cosine_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    """1 - cosine along the last dimension; the constant is the original's."""
    norms: Tensor = real.norm(dim=-1) * synthetic.norm(dim=-1)
    return 1 - (real * synthetic).sum(dim=-1) / (norms + 1e-6)


def trajectory_matching_loss(final: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """Distance of a student's parameters from its expert's, relative to how far the expert went.

    Cazenavette et al., Dataset Distillation by Matching Training Trajectories (CVPR 2022), eq. 2.

    Args:
        final: the student's parameters after its steps, (P,).
        start: the expert's parameters from which the student started, (P,).
        target: the expert's parameters some epochs later, (P,).

    Returns:
        A scalar: squared distance from final to target over squared distance from start to target.

    Raises:
        ValueError: if the vectors differ in shape.
    """
    if not final.shape == start.shape == target.shape:
        raise ValueError(
            "final, start and target must have the same shape, got "
            f"{tuple(final.shape)}, {tuple(start.shape)} and {tuple(target.shape)}"
        )
    return (final - target).square().sum() / (start - target).square().sum()
