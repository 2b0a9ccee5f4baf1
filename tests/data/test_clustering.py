"""k-means: the clusters there are, their numbers, the same every time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dam_lightning.data.clustering import k_means_groups, standardise_


def blobs(sizes: tuple[int, ...] = (30, 20, 10), width: int = 5) -> tuple[Tensor, Tensor]:
    """Points around far-off centres, in random order, and which centre."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    truth = truth[torch.randperm(len(truth), generator=generator)]
    centres = 10 * torch.randn(len(sizes), width, generator=generator)
    points = centres[truth] + 0.1 * torch.randn(len(truth), width, generator=generator)
    return points, truth


def test_clusters_are_found_and_numbered_by_their_mean_score() -> None:
    features, truth = blobs()
    scores = torch.tensor([5.0, -1.0, 2.0])[truth] + torch.arange(60) * 1e-3
    labels = k_means_groups(features, scores, 3, seed=0)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, torch.tensor([2, 0, 1])[truth])


def test_another_seed_or_order_finds_the_same_clusters() -> None:
    features, truth = blobs()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    scores = truth.double()
    for seed in range(3):
        assert torch.equal(k_means_groups(features.clone(), scores, 3, seed), truth)
    assert torch.equal(k_means_groups(features[order], scores[order], 3, 0), truth[order])


def test_the_same_seed_gives_the_same_clusters_where_there_are_none() -> None:
    features = torch.rand(500, 20, generator=torch.Generator().manual_seed(0))
    scores = features.double().sum(1)
    first, again, other = (k_means_groups(features.clone(), scores, 6, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    means = [float(scores[first == number].mean()) for number in range(6)]
    assert means == sorted(means)


def test_standardised_columns_count_alike() -> None:
    features, truth = blobs((20, 20), width=1)
    noise = 1e4 * torch.rand(40, 1, generator=torch.Generator().manual_seed(0))
    both = torch.cat([features, noise], dim=1)
    scores = truth.double()
    assert not torch.equal(k_means_groups(both.clone(), scores, 2, 0), truth)
    assert torch.equal(k_means_groups(both.clone(), scores, 2, 0, standardise=True), truth)


def test_standardising_is_that_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dam_lightning.data.clustering._CHUNK", 7)
    values = np.random.default_rng(0).normal(50, 3, (20, 4)).astype(np.float32)
    values[:, 2] = 1000 + np.arange(20) * 1e-4  # nothing but rounding
    wide = values.astype(np.float64)
    expected = (wide - wide.mean(0)) / wide.std(0)
    expected[:, 2] = 0
    standardise_(values)
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_each_class_is_clustered_by_itself() -> None:
    features, truth = blobs((30, 30))
    classes = torch.arange(60) % 2
    # Numbers by scores within the class, which are the other way round in the second one.
    scores = torch.where(classes == 0, truth, 1 - truth).double()
    labels = k_means_groups(features, scores, 2, 0, within=classes, names=["a", "b"])
    assert torch.equal(labels, scores.long())


def test_too_few_different_images_are_refused() -> None:
    features = torch.arange(3.0).repeat(10).view(30, 1)
    with pytest.raises(ValueError, match="4 pseudo-domains of the training set: only 3 of its"):
        k_means_groups(features.clone(), features[:, 0], 4, 0)
    classes = (torch.arange(30) == 29).long() * 2
    with pytest.raises(ValueError, match="2 pseudo-domains of class 'cow': only 1 of its images"):
        k_means_groups(
            features.clone(), features[:, 0], 2, 0, within=classes, names=["ant", "bee", "cow"]
        )
    assert len(k_means_groups(features.clone(), features[:, 0], 3, 0).unique()) == 3
