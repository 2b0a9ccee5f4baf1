"""Every way to make pseudo-domains, through the data module."""

import inspect
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from dam_lightning.backbones import ConvNet
from dam_lightning.data import ResidentDataModule, Split, pseudo_labels
from dam_lightning.data.clustering import k_means_groups
from dam_lightning.data.pseudo_labels import (
    PseudoGrouping,
    PseudoLabelling,
    PseudoLabels,
    PseudoScope,
    log_variance_network,
)
from dam_lightning.data.results import computed_once
from dam_lightning.functional import rank_groups
from dam_lightning.functional.log_variance import log_variance_features
from tests.reference.fourier import low_frequency_amplitude
from tests.tiny import CLASS_SIZES, TinyData, tiny_data

COUNT = sum(CLASS_SIZES)


class Reordered(TinyData):
    """The same images in another order."""

    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))

    def load_splits(self) -> Mapping[str, Split]:
        splits = dict(super().load_splits())
        splits["train"] = splits["train"].subset(self.order)
        return splits


class Gaps(TinyData):
    """Of three domains, the training images have the first and the last."""

    domain_names = ("plain", "unseen", "stripes")

    def load_splits(self) -> Mapping[str, Split]:
        splits = dict(super().load_splits())
        train = splits["train"]
        splits["train"] = Split(train.images, train.labels, 2 * train.domains, train.paths)
        return splits


class Single(TinyData):
    """One domain only."""

    domain_names = ("plain",)

    def load_splits(self) -> Mapping[str, Split]:
        return {
            name: Split(s.images, s.labels, torch.zeros_like(s.domains), s.paths)
            for name, s in super().load_splits().items()
        }


class Copies(TinyData):
    """Two different images, many times."""

    def load_splits(self) -> Mapping[str, Split]:
        splits = dict(super().load_splits())
        train = splits["train"]
        images = train.images[torch.arange(COUNT) % 2]
        splits["train"] = Split(images, train.labels, train.domains, train.paths)
        return splits


def labelled(
    folder: Path, num_domains: int = 3, kind: type[TinyData] = TinyData, **options: Any
) -> TinyData:
    data = kind(cache_dir=str(folder / "cache"), **options)
    data.prepare_data()
    data.setup()
    data.setup_domains(num_domains)
    return data


def test_the_defaults_are_the_papers() -> None:
    parameters = inspect.signature(ResidentDataModule).parameters
    defaults = {name: parameters[name].default for name in parameters if "cache" not in name}
    found = {n: v for n, v in defaults.items() if n.startswith(("pseudo_", "fft_"))}
    assert found == {
        "pseudo_labels": "fft",
        "pseudo_grouping": "mean_sort",
        "pseudo_scope": "global",
        "fft_ratio": 0.1,
        "fft_window": "half_width",
        "fft_log": False,
    }
    assert PseudoLabelling() == PseudoLabelling(
        **dict(
            zip(
                ("labels", "grouping", "scope", "fft_ratio", "fft_window", "fft_log"),
                found.values(),
                strict=True,
            )
        )
    )


@pytest.mark.parametrize(("window", "ratio"), [("half_width", 0.2), ("area", 0.3)])
@pytest.mark.parametrize("log", [False, True])
def test_images_are_sorted_by_amplitude(
    tmp_path: Path, window: str, ratio: float, log: bool
) -> None:
    data = labelled(tmp_path, fft_window=window, fft_ratio=ratio, fft_log=log)
    amplitudes = np.abs(np.fft.fft2(data.train.images.double().numpy() / 255))
    shifted = np.fft.fftshift(amplitudes, axes=(-2, -1))
    low, high = (5, 12) if window == "half_width" else (4, 12)  # 2 * 3 + 1; floor(16 * sqrt(0.3))
    kept = shifted[..., low:high, low:high]
    scores = (np.log1p(kept) if log else kept).mean((1, 2, 3))
    np.testing.assert_allclose(data.pseudo_domain_scores, scores, rtol=1e-12)
    assert torch.equal(data.pseudo_domains, rank_groups(torch.from_numpy(scores), 3))


@pytest.mark.parametrize("scope", get_args(PseudoScope))
@pytest.mark.parametrize("labels", ["fft", "log_variance", "random"])
@pytest.mark.parametrize("num_domains", [1, 2, 3, 4])
def test_sorted_groups_are_balanced(
    tmp_path: Path, labels: str, scope: str, num_domains: int
) -> None:
    data = labelled(tmp_path, num_domains, pseudo_labels=labels, pseudo_scope=scope)
    parts = [torch.ones(COUNT, dtype=torch.bool)]
    if scope == "class":
        parts = [data.train.labels == label for label in range(3)]
    for part in parts:
        sizes = data.pseudo_domains[part].bincount(minlength=num_domains)
        assert len(sizes) == num_domains
        assert sizes.max() - sizes.min() <= 1
        assert sizes.min() > 0


def test_within_classes_each_is_sorted_by_itself(tmp_path: Path) -> None:
    data = labelled(tmp_path, 2, pseudo_scope="class")
    for label in range(3):
        of_class = data.train.labels == label
        scores = [
            low_frequency_amplitude(image.double().numpy() / 255)
            for image in data.train.images[of_class]
        ]
        expected = rank_groups(torch.tensor(scores, dtype=torch.float64), 2)
        assert torch.equal(data.pseudo_domains[of_class], expected)
    # Classes differ in brightness, so all together they are grouped otherwise.
    assert not torch.equal(data.pseudo_domains, labelled(tmp_path, 2).pseudo_domains)


@pytest.mark.parametrize("scope", get_args(PseudoScope))
@pytest.mark.parametrize("labels", ["fft", "log_variance"])
def test_the_order_of_the_images_does_not_matter(tmp_path: Path, labels: str, scope: str) -> None:
    options = {"pseudo_labels": labels, "pseudo_scope": scope}
    data = labelled(tmp_path, **options)
    again = labelled(tmp_path, kind=Reordered, **options)
    assert torch.equal(again.pseudo_domains, data.pseudo_domains[Reordered.order])


def test_log_variance_is_that_of_a_convnet_of_width_128(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudo_labels, "_CONVOLVED", 10)  # several chunks, the last one smaller
    data = labelled(tmp_path, pseudo_labels="log_variance")
    net = ConvNet((3, 16, 16), 3)
    weights = log_variance_network(3)
    for (weight, bias), module in zip(weights, (net.blocks[0], net.blocks[4]), strict=True):
        assert weight.shape == module.weight.shape
        assert bias.shape == module.bias.shape
        # As PyTorch initialises it.
        bound = module.weight.detach().abs().max()
        assert weight.abs().max() == pytest.approx(float(bound), rel=0.02)
        assert float(weight.std() / module.weight.detach().std()) == pytest.approx(1, rel=0.05)
    features = log_variance_features(data.normalisation(data.train.images), *weights)
    assert features.shape == (COUNT, 256)
    expected = features.double().mean(1)
    torch.testing.assert_close(data.pseudo_domain_scores, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(data.pseudo_domains, rank_groups(expected, 3))
    assert data.pseudo_domains.tolist() != labelled(tmp_path).pseudo_domains.tolist()


def test_log_variance_of_whitened_data_is_of_raw_images(tmp_path: Path) -> None:
    """Normalised by their own mean and deviation: whitening has none."""
    data = labelled(tmp_path, pseudo_labels="log_variance", zca=True)
    pixels = data.train.images.double() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    plain = TinyData(cache_dir=str(tmp_path / "other"), pseudo_labels="log_variance")
    plain.mean, plain.std = tuple(mean.tolist()), tuple(std.tolist())
    plain.setup()
    torch.testing.assert_close(
        data.pseudo_domain_scores, plain.pseudo_domain_scores, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("labels", ["fft", "log_variance"])
@pytest.mark.parametrize("scope", get_args(PseudoScope))
def test_k_means_groups_what_was_measured(tmp_path: Path, labels: str, scope: str) -> None:
    data = labelled(tmp_path, pseudo_labels=labels, pseudo_grouping="k_means", pseudo_scope=scope)
    if labels == "fft":
        amplitudes = np.abs(np.fft.fft2(data.train.images.double().numpy() / 255))
        shifted = np.fft.fftshift(amplitudes, axes=(-2, -1))[..., 7:10, 7:10]
        features = torch.from_numpy(shifted).float().flatten(1)
    else:
        features = log_variance_features(
            data.normalisation(data.train.images), *log_variance_network(3)
        )
    within = data.train.labels if scope == "class" else None
    expected = k_means_groups(
        features, features.mean(1), 3, 0, labels == "fft", within, data.class_names
    )
    assert torch.equal(data.pseudo_domains, expected)
    for part in range(3) if scope == "class" else (None,):
        chosen = slice(None) if part is None else data.train.labels == part
        scores, groups = data.pseudo_domain_scores[chosen], data.pseudo_domains[chosen]
        means = [float(scores[groups == number].mean()) for number in range(3)]
        assert means == sorted(means)


def test_clusters_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = pseudo_labels.k_means_groups

    def spy(features: Any, scores: Any, num_groups: int, *more: Any, **options: Any) -> Any:
        calls.append(num_groups)
        return original(features, scores, num_groups, *more, **options)

    monkeypatch.setattr(pseudo_labels, "k_means_groups", spy)
    first = labelled(tmp_path, pseudo_grouping="k_means")
    again = labelled(tmp_path, pseudo_grouping="k_means")
    assert torch.equal(first.pseudo_domains, again.pseudo_domains)
    assert calls == [3]
    # And found again from nothing.
    anew = labelled(tmp_path / "elsewhere", pseudo_grouping="k_means")
    assert torch.equal(first.pseudo_domains, anew.pseudo_domains)
    for options in (
        {"num_domains": 4},
        {"split_seed": 1},
        {"fft_ratio": 0.3},
        {"pseudo_labels": "log_variance"},
        {"pseudo_scope": "class"},
        {"fft_log": True},
    ):
        labelled(tmp_path, pseudo_grouping="k_means", **options)
    assert calls == [3, 3, 4, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("kind", ["amplitudes", "log-variance"])
def test_measurements_are_computed_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = "fft" if kind == "amplitudes" else "log_variance"
    first = labelled(tmp_path, pseudo_labels=labels)
    (file,) = (tmp_path / "cache").iterdir()
    assert file.name.startswith(kind)
    for name in ("low_frequency_amplitude", "log_variance_features"):
        monkeypatch.setattr(pseudo_labels, name, lambda *_: pytest.fail("computed again"))
    again = labelled(tmp_path, pseudo_labels=labels)
    assert torch.equal(first.pseudo_domains, again.pseudo_domains)


def test_random_groups_follow_split_seed_and_no_other(tmp_path: Path) -> None:
    first, run, other = (
        labelled(tmp_path, pseudo_labels="random", seed=seed, split_seed=split).pseudo_domains
        for seed, split in ((0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(first, run)
    assert not torch.equal(first, other)
    # Not the order of the data.
    assert not torch.equal(first, rank_groups(torch.arange(COUNT), 3))


def test_true_domains_are_numbered_without_gaps(tmp_path: Path) -> None:
    data = labelled(tmp_path, 2, pseudo_labels="actual")
    assert torch.equal(data.pseudo_domains, data.train.domains)
    assert data.pseudo_domain_scores is None
    gaps = labelled(tmp_path, 2, Gaps, pseudo_labels="actual")
    assert torch.equal(gaps.pseudo_domains, gaps.train.domains // 2)


@pytest.mark.parametrize("num_domains", [1, 3, 4])
def test_another_number_than_that_of_true_domains_is_refused(
    tmp_path: Path, num_domains: int
) -> None:
    message = rf"2 domains \(plain, stripes\), but .* {num_domains}: .* --model.dam.num_domains 2"
    for kind in (TinyData, Gaps):
        with pytest.raises(ValueError, match=message):
            labelled(tmp_path, num_domains, kind, pseudo_labels="actual")


def test_a_single_domain_cannot_be_the_labels(tmp_path: Path) -> None:
    for num_domains in (1, 2):
        with pytest.raises(ValueError, match="of one domain, plain: pseudo_labels actual needs"):
            labelled(tmp_path, num_domains, Single, pseudo_labels="actual")


def test_too_few_different_images_are_refused(tmp_path: Path) -> None:
    for labels in ("fft", "log_variance"):
        with pytest.raises(ValueError, match="training set: only 2 of its images differ"):
            labelled(tmp_path, 3, Copies, pseudo_labels=labels, pseudo_grouping="k_means")
    assert labelled(tmp_path, 2, Copies, pseudo_grouping="k_means").pseudo_domains.max() == 1


@pytest.mark.parametrize(("labels", "grouping"), [("fft", "k_means"), ("random", "mean_sort")])
def test_a_class_that_is_too_small_is_refused(tmp_path: Path, labels: str, grouping: str) -> None:
    with pytest.raises(ValueError, match="class 'ant' has 4 training images, too few for 5"):
        labelled(tmp_path, 5, pseudo_labels=labels, pseudo_grouping=grouping, pseudo_scope="class")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pseudo_labels": "fourier"}, "pseudo_labels must be one of fft, log_variance, random"),
        ({"pseudo_grouping": "kmeans"}, "pseudo_grouping must be one of mean_sort, k_means"),
        ({"pseudo_scope": "classes"}, "pseudo_scope must be one of global, class"),
        ({"fft_window": "round"}, "fft_window must be one of half_width, area"),
        ({"fft_ratio": 0.5}, r"fft_ratio must be in \[0, 0.5\), got 0.5"),
        ({"fft_ratio": 0.0, "fft_window": "area"}, r"fft_ratio must be in \(0, 1\] for an area"),
        (
            {"pseudo_labels": "random", "pseudo_grouping": "k_means"},
            "nothing to cluster with pseudo_labels random: leave out pseudo_grouping k_means",
        ),
        (
            {"pseudo_labels": "actual", "pseudo_scope": "class"},
            "leave out pseudo_scope class",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TinyData(**options)


def test_every_labelling_has_a_description_of_its_own() -> None:
    described = set()
    for labels in get_args(PseudoLabels):
        for grouping in get_args(PseudoGrouping):
            for scope in get_args(PseudoScope):
                try:
                    labelling = PseudoLabelling(labels, grouping, scope)
                except ValueError:
                    continue
                described.add(labelling.description)
    assert len(described) == 2 * 2 * 2 + 2 + 1


def test_labels_go_on_with_the_checkpoint_of_plain_values(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, pseudo_labels="fft", fft_window="area")
    assert data.hparams["pseudo_labels"] == "fft"
    assert data.hparams["fft_window"] == "area"
    assert "pseudo_labelling" not in data.hparams


@pytest.mark.parametrize("labels", ["log_variance", "random", "actual"])
@pytest.mark.parametrize("option", [{"fft_ratio": 0.2}, {"fft_window": "area"}, {"fft_log": True}])
def test_amplitudes_have_no_options_where_there_are_none(
    labels: PseudoLabels, option: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"no amplitudes with pseudo_labels {labels}: leave out"):
        PseudoLabelling(labels, **option)


def test_two_processes_compute_once(tmp_path: Path) -> None:
    """The second waits, and reads."""
    calls: list[int] = []
    begun = threading.Event()

    def compute() -> dict[str, Tensor]:
        calls.append(1)
        begun.set()
        time.sleep(0.2)
        return {"a": torch.arange(3)}

    path = tmp_path / "new" / "result.safetensors"
    first = threading.Thread(target=computed_once, args=(path, compute))
    first.start()
    begun.wait()
    assert torch.equal(computed_once(path, compute)["a"], torch.arange(3))
    first.join()
    assert calls == [1]
    assert list(path.parent.iterdir()) == [path]
