"""Choosing a few images that stand for many, by their features: the coresets of the field.

All take (N, F) features of the images of one class and give the numbers of k of them, no image
twice. Distances are Euclidean.
"""

import warnings

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

__all__ = ["herding", "k_center", "k_medoids"]


def herding(features: Tensor, k: int) -> Tensor:
    """Pick images one after the other so that their mean stays nearest the mean of all.

    Welling (ICML 2009), without replacement as in iCaRL (Rebuffi et al., CVPR 2017), whose
    normalisation of the features is left to the caller.

    Args:
        features: (N, F) floating.
        k: number of images, 1 to N.

    Returns:
        (k,) int64, in the order in which they were picked; the first m are those of ``k`` = m.

    Raises:
        ValueError: if ``k`` is out of its range, or the features are not finite.
    """
    _check(features, k)
    mean = features.mean(dim=0)
    total = torch.zeros_like(mean)
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    picked: list[int] = []
    for count in range(1, k + 1):
        # Nearest to this is the image with which the mean of ``count`` images comes nearest.
        number = _nearest(features, count * mean - total, free)
        picked.append(number)
        total += features[number]
        free[number] = False
    return torch.tensor(picked, device=features.device)


def k_center(features: Tensor, k: int) -> Tensor:
    """Pick the image nearest the mean, then again and again the one farthest from those picked.

    The greedy solution of the k-center problem (Gonzalez, 1985), used for coresets by Sener and
    Savarese (ICLR 2018).

    Args:
        features: (N, F) floating.
        k: number of images, 1 to N.

    Returns:
        (k,) int64, in the order in which they were picked; the first m are those of ``k`` = m.

    Raises:
        ValueError: if ``k`` is out of its range, or the features are not finite.
    """
    _check(features, k)
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    number = _nearest(features, features.mean(dim=0), free)
    picked = [number]
    distances = _squared_distances(features, features[number])
    while len(picked) < k:
        # Also where all that are left equal one that was picked, at a distance of 0.
        free[number] = False
        number = int(distances.masked_fill(~free, -1).argmax())
        picked.append(number)
        distances = torch.minimum(distances, _squared_distances(features, features[number]))
    return torch.tensor(picked, device=features.device)


def k_medoids(features: Tensor, k: int, seed: int) -> Tensor:
    """Pick the image nearest each of the k centroids of k-means.

    Lloyd's algorithm, the best of 10 greedy k-means++ starts (scikit-learn), on the host, on one
    thread: the sums of several are added up in the order in which these happen to finish. An image
    that stands for one centroid cannot stand for another, which takes the next nearest.

    Args:
        features: (N, F) floating.
        k: number of images, 1 to N.
        seed: of the starts, 0 to 2^32 - 1.

    Returns:
        (k,) int64.

    Raises:
        ValueError: if ``k`` is out of its range, or the features are not finite.
    """
    _check(features, k)
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Where fewer than k images differ, some centroids are equal, which does no harm here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(k, n_init=10, random_state=seed).fit(features.detach().cpu().numpy())
    centroids = torch.from_numpy(means.cluster_centers_).to(features)
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    picked: list[int] = []
    for centroid in centroids:
        number = _nearest(features, centroid, free)
        picked.append(number)
        free[number] = False
    return torch.tensor(picked, device=features.device)


def _squared_distances(features: Tensor, point: Tensor) -> Tensor:
    return (features - point).square().sum(dim=1)


def _nearest(features: Tensor, point: Tensor, free: Tensor) -> int:
    """Number of the row nearest a point, among those that are free."""
    return int(_squared_distances(features, point).masked_fill(~free, torch.inf).argmin())


def _check(features: Tensor, k: int) -> None:
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(
            f"features must be floating (N, F), got {features.dtype} {tuple(features.shape)}"
        )
    if not 1 <= k <= len(features):
        raise ValueError(f"k must be at least 1 and at most {len(features)} images, got {k}")
    if not bool(features.isfinite().all()):
        raise ValueError("features must be finite")
