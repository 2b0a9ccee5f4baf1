"""Coresets against plain searches."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from dam_lightning.functional.coresets import herding, k_center, k_medoids

WAYS: list[Callable[[Tensor, int], Tensor]] = [
    herding,
    k_center,
    lambda features, k: k_medoids(features, k, 0),
]
ways = pytest.mark.parametrize("way", WAYS, ids=["herding", "k_center", "k_medoids"])


def points(number: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 3, generator=generator, dtype=torch.float64)


def nearest_mean(rows: np.ndarray, picked: list[int]) -> int:
    """The image with which the mean of those picked comes nearest that of all."""
    distances = {
        n: np.linalg.norm(rows[[*picked, n]].mean(axis=0) - rows.mean(axis=0))
        for n in range(len(rows))
        if n not in picked
    }
    return min(distances, key=lambda n: distances[n])


def farthest(rows: np.ndarray, picked: list[int]) -> int:
    """The image whose nearest picked one is farthest."""
    distances = {
        n: min(np.linalg.norm(rows[n] - rows[other]) for other in picked)
        for n in range(len(rows))
        if n not in picked
    }
    return max(distances, key=lambda n: distances[n])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 2, 7, 20])
def test_herding_is_the_greedy_search(k: int, seed: int) -> None:
    features = points(20, seed)
    picked: list[int] = []
    while len(picked) < k:
        picked.append(nearest_mean(features.numpy(), picked))
    assert herding(features, k).tolist() == picked


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 2, 7, 20])
def test_k_center_is_the_greedy_search(k: int, seed: int) -> None:
    features = points(20, seed)
    picked = [nearest_mean(features.numpy(), [])]
    while len(picked) < k:
        picked.append(farthest(features.numpy(), picked))
    assert k_center(features, k).tolist() == picked


def best_centroids(rows: np.ndarray, k: int) -> np.ndarray:
    """Of all ways to divide the images, the one with the smallest sum of squares."""
    best, found = np.inf, np.empty(0)
    for division in product(range(k), repeat=len(rows)):
        if len(set(division)) < k:
            continue
        groups = [rows[np.array(division) == cluster] for cluster in range(k)]
        spread = sum(((group - group.mean(axis=0)) ** 2).sum() for group in groups)
        if spread < best:
            best, found = spread, np.stack([group.mean(axis=0) for group in groups])
    return found


@pytest.mark.parametrize(("k", "seed"), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_medoids_are_nearest_the_best_centroids(k: int, seed: int) -> None:
    rows = points(8, seed).numpy()
    expected = {
        int(np.linalg.norm(rows - centroid, axis=1).argmin())
        for centroid in best_centroids(rows, k)
    }
    assert len(expected) == k
    assert set(k_medoids(torch.from_numpy(rows), k, 0).tolist()) == expected


def test_medoids_depend_on_the_seed_alone() -> None:
    features = points(200)
    first = k_medoids(features, 20, 1)
    np.random.seed(3)
    assert torch.equal(k_medoids(features, 20, 1), first)
    assert set(k_medoids(features, 20, 2).tolist()) != set(first.tolist())


@ways
def test_no_image_is_picked_twice_where_many_are_equal(
    way: Callable[[Tensor, int], Tensor], recwarn: pytest.WarningsRecorder
) -> None:
    features = points(3)[torch.tensor([0, 0, 0, 1, 1, 2])]
    for k in (4, 6):
        assert len(set(way(features, k).tolist())) == k
    assert not recwarn.list


@ways
def test_what_is_picked_does_not_depend_on_the_precision(
    way: Callable[[Tensor, int], Tensor],
) -> None:
    picked = way(points(30).float(), 5)
    assert picked.dtype == torch.int64
    assert picked.tolist() == way(points(30), 5).tolist()


@ways
@pytest.mark.parametrize("k", [0, 5])
def test_too_few_images(way: Callable[[Tensor, int], Tensor], k: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 and at most 4 images, got {k}"):
        way(points(4), k)


@ways
def test_bad_features(way: Callable[[Tensor, int], Tensor]) -> None:
    broken = points(4)
    broken[1, 2] = torch.nan
    with pytest.raises(ValueError, match="features must be finite"):
        way(broken, 2)
    for wrong in (torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4)):
        with pytest.raises(ValueError, match=r"floating \(N, F\)"):
            way(wrong, 2)
