"""Equations 4 and 5, and the ranking."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dam_lightning.functional import low_frequency_amplitude, rank_groups
from dam_lightning.functional.pseudo_domains import check_window, low_frequency_spectrum
from tests.reference import fourier

few = settings(max_examples=40, deadline=None, derandomize=True)
scores_with_ties = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40)
distinct_scores = st.lists(
    st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=40, unique=True
)


def raw_images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (16, 10), (11, 20), (1, 1), (3, 2)])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.2, 0.3, 0.49])
def test_amplitude_equals_the_plain_loop(size: tuple[int, int], ratio: float) -> None:
    images = raw_images(3, 3, *size)
    expected = [fourier.low_frequency_amplitude(image.numpy(), ratio) for image in images]
    found = low_frequency_amplitude(images, ratio)
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    assert low_frequency_amplitude(images.float(), ratio).tolist() == pytest.approx(
        expected, rel=1e-5
    )


def test_amplitude_keeps_the_type_and_the_default_ratio() -> None:
    images = raw_images(2, 3, 32, 32)
    for dtype in (torch.float32, torch.float64):
        scores = low_frequency_amplitude(images.to(dtype))
        assert scores.dtype == dtype
        assert scores.shape == (2,)
        assert torch.equal(scores, low_frequency_amplitude(images.to(dtype), 0.1))
    assert not torch.allclose(low_frequency_amplitude(images), low_frequency_amplitude(images, 0.2))


def test_amplitude_of_half_precision() -> None:
    images = raw_images(2, 3, 8, 8)
    found = low_frequency_amplitude(images.half())
    assert torch.allclose(found.double(), low_frequency_amplitude(images), rtol=1e-2)


@pytest.mark.parametrize(("size", "half"), [(32, 3), (64, 6)])
def test_the_window_is_that_of_fourier_domain_adaptation(size: int, half: int) -> None:
    """A pure wave scores inside the window and does not outside."""
    column = torch.arange(size, dtype=torch.float64)
    for frequency in (half, half + 1):
        wave = 0.5 * torch.cos(2 * math.pi * frequency * column / size)
        for image in (wave.expand(size, size), wave.unsqueeze(1).expand(size, size)):
            score = low_frequency_amplitude(image.expand(1, 3, size, size)).item()
            # Both signs of the frequency, 0.25 * size ** 2 each, over the window's area.
            expected = 2 * 0.25 * size**2 / (2 * half + 1) ** 2 if frequency == half else 0.0
            assert score == pytest.approx(expected, abs=1e-9)


def cropped(images: Tensor, rows: int, columns: int) -> np.ndarray:
    """The middle of the shifted amplitudes, with the zero frequency at ``side // 2``."""
    shifted = np.fft.fftshift(np.abs(np.fft.fft2(images.numpy())), axes=(-2, -1))
    top = images.shape[-2] // 2 - rows // 2
    left = images.shape[-1] // 2 - columns // 2
    return shifted[..., top : top + rows, left : left + columns]


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (16, 10), (11, 20), (5, 4)])
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.3, 0.49])
def test_the_window_of_half_width_is_the_crop_of_the_shifted_transform(
    size: tuple[int, int], ratio: float
) -> None:
    images = raw_images(3, 2, *size)
    half = int(ratio * min(size))
    found = low_frequency_spectrum(images, ratio)
    np.testing.assert_allclose(
        found.numpy(), cropped(images, 2 * half + 1, 2 * half + 1), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (16, 10), (11, 20), (5, 4)])
@pytest.mark.parametrize("ratio", [0.09, 0.25, 0.5, 0.7, 1.0])
def test_the_window_of_an_area_is_the_crop_of_the_shifted_transform(
    size: tuple[int, int], ratio: float
) -> None:
    images = raw_images(3, 2, *size)
    rows, columns = (int(side * math.sqrt(ratio)) for side in size)
    found = low_frequency_spectrum(images, ratio, "area")
    assert found.shape == (3, 2, rows, columns)
    expected = cropped(images, rows, columns)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-11)
    score = low_frequency_amplitude(images, ratio, "area")
    np.testing.assert_allclose(score.numpy(), expected.mean(axis=(1, 2, 3)), rtol=1e-11)


def test_the_logarithm_is_taken_before_the_mean() -> None:
    images = raw_images(3, 2, 8, 8)
    expected = np.log1p(cropped(images, 3, 3)).mean(axis=(1, 2, 3))
    found = low_frequency_amplitude(images, 0.2, log=True)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11)


def test_an_area_without_frequencies_is_refused() -> None:
    with pytest.raises(ValueError, match=r"leaves no frequency: use a ratio of at least 0\.016"):
        low_frequency_spectrum(raw_images(1, 3, 8, 16), 0.01, "area")
    assert low_frequency_spectrum(raw_images(1, 3, 8, 16), 0.016, "area").shape == (1, 3, 1, 2)


@pytest.mark.parametrize("ratio", [0.0, 1.1, -0.5, math.nan])
def test_ratios_that_are_no_area_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"fft_ratio must be in \(0, 1\] for an area"):
        check_window("fft_ratio", ratio, "area")


def test_an_unknown_window_is_refused() -> None:
    with pytest.raises(ValueError, match="must be half_width or area, got 'round'"):
        low_frequency_spectrum(raw_images(1, 3, 8, 8), 0.1, "round")  # type: ignore[arg-type]


def test_equal_images_have_equal_scores() -> None:
    """To the last bit, so that their order decides and not where they are in a batch."""
    image = raw_images(1, 3, 13, 11)
    assert len(low_frequency_amplitude(image.expand(37, -1, -1, -1)).unique()) == 1


def test_an_image_scores_the_same_in_any_batch() -> None:
    images = raw_images(6, 3, 12, 12)
    alone = torch.cat([low_frequency_amplitude(image.unsqueeze(0)) for image in images])
    assert torch.allclose(low_frequency_amplitude(images), alone, rtol=1e-12)
    assert torch.allclose(low_frequency_amplitude(images.flip(0)), alone.flip(0), rtol=1e-12)


@few
@given(st.integers(0, 99), st.integers(-9, 9), st.integers(-9, 9), st.floats(0.0, 1.0))
def test_amplitude_ignores_position_and_follows_contrast(
    seed: int, down: int, right: int, factor: float
) -> None:
    images = raw_images(1, 2, 10, 12, seed=seed)
    score = low_frequency_amplitude(images).item()
    moved = images.roll((down, right), dims=(2, 3))
    assert low_frequency_amplitude(moved).item() == pytest.approx(score, rel=1e-9)
    assert low_frequency_amplitude(images * factor).item() == pytest.approx(
        factor * score, rel=1e-9, abs=1e-12
    )


def test_dark_images_come_before_bright_ones() -> None:
    brightness = torch.tensor([0.9, 0.1, 0.5, 0.3])
    images = brightness.view(4, 1, 1, 1).expand(4, 3, 16, 16)
    assert rank_groups(low_frequency_amplitude(images), 4).tolist() == [3, 0, 2, 1]


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)]
)
def test_amplitude_refuses_other_images(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"floating \(N, C, H, W\)"):
        low_frequency_amplitude(images)


@pytest.mark.parametrize("ratio", [-0.1, 0.5, 1.0, math.nan])
def test_amplitude_refuses_other_ratios(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"ratio must be in \[0, 0.5\)"):
        low_frequency_amplitude(torch.zeros(1, 3, 8, 8), ratio)


@few
@given(scores_with_ties, st.integers(1, 40))
def test_groups_equal_the_plain_sort(scores: list[float], num_groups: int) -> None:
    num_groups = min(num_groups, len(scores))
    labels = rank_groups(torch.tensor(scores), num_groups)
    assert labels.dtype == torch.int64
    assert labels.tolist() == fourier.rank_groups(scores, num_groups)


@few
@given(scores_with_ties, st.integers(1, 40))
def test_groups_differ_by_at_most_one_and_follow_the_scores(
    scores: list[float], num_groups: int
) -> None:
    num_groups = min(num_groups, len(scores))
    labels = rank_groups(torch.tensor(scores), num_groups)
    sizes = torch.bincount(labels, minlength=num_groups)
    assert len(sizes) == num_groups
    assert sizes.max() - sizes.min() <= 1
    ordered = sorted(zip(scores, range(len(scores)), labels.tolist(), strict=True))
    assert [label for *_, label in ordered] == [
        num_groups * rank // len(scores) for rank in range(len(scores))
    ]


@few
@given(distinct_scores, st.integers(1, 40), st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order_of_the_images(
    scores: list[float], num_groups: int, shuffler: object
) -> None:
    num_groups = min(num_groups, len(scores))
    order = list(range(len(scores)))
    shuffler.shuffle(order)  # type: ignore[attr-defined]
    values = torch.tensor(scores, dtype=torch.float64)
    assert torch.equal(
        rank_groups(values, num_groups)[order], rank_groups(values[order], num_groups)
    )


def test_equal_scores_keep_their_order() -> None:
    assert rank_groups(torch.ones(10), 5).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert rank_groups(torch.tensor([3.0, 1.0, 2.0, 1.0]), 2).tolist() == [1, 0, 1, 0]
    # Many ties, more than a sort's small special cases.
    scores = np.random.default_rng(0).integers(0, 5, 2000).astype(np.float32)
    expected = fourier.rank_groups(scores.tolist(), 7)
    assert rank_groups(torch.from_numpy(scores), 7).tolist() == expected


@few
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1), st.integers(1, 6))
def test_groups_within_classes_are_those_of_each_class_alone(
    images: list[tuple[int, int]], num_groups: int
) -> None:
    scores = torch.tensor([float(score) for score, _ in images])
    classes = torch.tensor([label for _, label in images])
    labels = rank_groups(scores, num_groups, within=classes)
    for value in range(4):
        alone = [float(score) for score, label in images if label == value]
        assert labels[classes == value].tolist() == fourier.rank_groups(alone, num_groups)


def test_one_group_and_one_group_each() -> None:
    scores = torch.tensor([0.3, -1.0, 7.0])
    assert rank_groups(scores, 1).tolist() == [0, 0, 0]
    assert rank_groups(scores, 3).tolist() == [1, 0, 2]


@pytest.mark.parametrize("num_groups", [0, -1])
def test_the_number_of_groups_must_fit(num_groups: int) -> None:
    with pytest.raises(ValueError, match="num_groups must be at least 1"):
        rank_groups(torch.zeros(3), num_groups)


def test_scores_must_be_a_finite_vector() -> None:
    assert rank_groups(torch.zeros(0), 1).tolist() == []
    with pytest.raises(ValueError, match=r"one-dimensional, got shape \(2, 3\)"):
        rank_groups(torch.zeros(2, 3), 2)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            rank_groups(torch.tensor([0.0, bad]), 2)
