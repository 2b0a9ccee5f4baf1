"""k-means on features of images, the same on every run."""

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

from dam_lightning.randomness import numpy_generator

__all__ = ["k_means_groups", "standardise_"]

_STARTS = 10
"""Starts of which the best is kept, so that the clusters do not hang on a single one."""
_NEGLIGIBLE = 1e-6
"""A spread that is nothing but rounding, as a share of the widest one."""
_CHUNK = 65536


def standardise_(features: npt.NDArray[np.float32]) -> None:
    """Give every column mean 0 and standard deviation 1, in place.

    A column in which the rows differ by no more than rounding becomes 0, lest noise count as much
    as all else.

    Args:
        features: (N, F).
    """
    mean = features.mean(axis=0, dtype=np.float64)
    square = np.zeros_like(mean)
    # In chunks, so that no copy in double precision is made of all.
    for start in range(0, len(features), _CHUNK):
        square += np.square(features[start : start + _CHUNK] - mean).sum(axis=0)
    deviation = np.sqrt(square / len(features))
    steady = deviation <= _NEGLIGIBLE * np.maximum(deviation.max(), np.abs(mean))
    features -= mean.astype(np.float32)
    features /= np.where(steady, 1, deviation).astype(np.float32)
    features[:, steady] = 0


def k_means_groups(
    features: Tensor,
    scores: Tensor,
    num_groups: int,
    seed: int,
    standardise: bool = False,
    within: Tensor | None = None,
    names: Sequence[str] = (),
) -> Tensor:
    """Clusters of the images, numbered by rising mean score.

    Lloyd's algorithm (scikit-learn's `KMeans`, the best of 10 starts). On one thread, because the
    sums of several are added up in the order in which these happen to finish. At 586,575 images
    that needs no mini-batches: beside ``features`` (0.6 GB for 256 values, 1.2 GB for 507) it takes
    megabytes, or with ``within`` a copy of those of one value, and minutes on one core.

    Args:
        features: (N, F) float32 on the CPU; overwritten.
        scores: (N,), what gives the clusters their numbers.
        num_groups: number of clusters, D.
        seed: of the starts.
        standardise: cluster the features with mean 0 and standard deviation 1.
        within: (N,) int64 from 0, e.g. classes; the images of each value are clustered (and
            standardised) by themselves. None: all images together.
        names: of the values of ``within``, for error messages.

    Returns:
        Labels, (N,) int64 in 0..D-1. Clusters differ in size, but none is empty.

    Raises:
        ValueError: there are fewer different images than clusters.
    """
    if within is not None:
        labels = torch.empty(len(features), dtype=torch.int64)
        for value in within.bincount().nonzero().flatten().tolist():
            members = within == value
            found = _clusters(features[members], num_groups, seed, standardise, value)
            _check(found, num_groups, f"class {names[value]!r}")
            labels[members] = _numbered(found, scores[members], num_groups)
        return labels
    found = _clusters(features, num_groups, seed, standardise, 0)
    _check(found, num_groups, "the training set")
    return _numbered(found, scores, num_groups)


def _clusters(
    features: Tensor, num_groups: int, seed: int, standardise: bool, group: int
) -> Tensor:
    """(N,) int64, in no particular order of clusters; ``features`` are overwritten."""
    if len(features) < num_groups:
        return torch.arange(len(features))
    values = features.numpy()
    if standardise:
        standardise_(values)
    draws = numpy_generator(seed, "pseudo-domains/k_means", 0, group)
    model = KMeans(
        num_groups,
        n_init=_STARTS,
        copy_x=False,
        random_state=int(draws.integers(2**31 - 1)),
    )
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # That clusters are too few for want of different images is said by the caller.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return torch.from_numpy(model.fit_predict(values)).long()


def _check(found: Tensor, num_groups: int, where: str) -> None:
    different = int((found.bincount() > 0).sum())
    if different < num_groups:
        raise ValueError(
            f"k-means cannot make {num_groups} pseudo-domains of {where}: only {different} of its "
            f"images differ in their features. Use at most {different} (num_domains)"
        )


def _numbered(found: Tensor, scores: Tensor, num_groups: int) -> Tensor:
    sums = torch.zeros(num_groups, dtype=torch.float64).index_add_(0, found, scores.double())
    means = sums / found.bincount(minlength=num_groups)
    return means.argsort(stable=True).argsort()[found]
