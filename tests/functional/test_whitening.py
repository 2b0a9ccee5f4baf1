"""ZCA whitening."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dam_lightning.functional import unwhiten, whiten, whitening, zca_matrix

SHAPE, SIZE = (3, 2, 4), 24


def some_images(number: int = 50, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Correlated pixels of unequal variance."""
    generator = np.random.default_rng(0)
    mixed = generator.normal(size=(number, SIZE)) @ generator.normal(size=(SIZE, SIZE))
    pixels = (128 + 20 * mixed).clip(0, 255).astype(np.uint8).reshape(number, *SHAPE)
    images = torch.from_numpy(pixels)
    return images if dtype == torch.uint8 else images.to(dtype) / 255


def by_svd(images: Tensor, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """As kornia's: singular values of the covariance."""
    flat = images.double().numpy().reshape(len(images), -1) / 255
    u, s, _ = np.linalg.svd(np.cov(flat, rowvar=False, ddof=1))
    return flat.mean(axis=0), u @ np.diag(1 / np.sqrt(s + epsilon)) @ u.T


@pytest.mark.parametrize("number", [50, 10])  # more and fewer images than dimensions
@pytest.mark.parametrize("epsilon", [0.1, 1e-3])
def test_it_equals_a_plain_singular_value_decomposition(number: int, epsilon: float) -> None:
    images = some_images(number)
    mean, matrix = zca_matrix(images, epsilon)
    expected = by_svd(images, epsilon)
    assert mean.dtype == matrix.dtype == torch.float64
    np.testing.assert_allclose(mean.numpy(), expected[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(matrix.numpy(), expected[1], rtol=1e-9, atol=1e-9)


def test_the_default_is_that_of_the_original() -> None:
    images = some_images()
    assert torch.equal(zca_matrix(images)[1], zca_matrix(images, 0.1)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_of_any_type(dtype: torch.dtype) -> None:
    for found, expected in zip(
        zca_matrix(some_images(dtype=dtype)), zca_matrix(some_images()), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = zca_matrix(some_images())
    monkeypatch.setattr(whitening, "_CHUNK", 7)  # the last one is smaller
    for found, expected in zip(zca_matrix(some_images()), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_whitened_images_have_the_expected_spectrum() -> None:
    images = some_images(dtype=torch.float64)
    white = whiten(images, *zca_matrix(images)).flatten(1).numpy()
    variances = np.linalg.eigvalsh(np.cov(images.flatten(1).numpy(), rowvar=False))
    assert variances[-1] > 10 * variances[0]
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(np.cov(white, rowvar=False)), variances / (variances + 0.1), rtol=1e-8
    )


@pytest.mark.parametrize("leading", [(), (0,), (5,), (2, 3)])
def test_whitening_is_undone(leading: tuple[int, ...]) -> None:
    mean, matrix = (part.float() for part in zca_matrix(some_images()))
    images = torch.rand(*leading, *SHAPE, generator=torch.Generator().manual_seed(0))
    white = whiten(images, mean, matrix)
    assert white.shape == images.shape
    assert white.dtype == torch.float32
    back = unwhiten(white, mean, matrix)
    assert back.shape == images.shape
    torch.testing.assert_close(back, images, rtol=0, atol=1e-6)
    for image, found in zip(images.view(-1, SIZE), white.view(-1, SIZE), strict=True):
        torch.testing.assert_close(found, matrix @ (image - mean), rtol=0, atol=1e-5)


def test_autocast_does_not_round_it() -> None:
    images = some_images(dtype=torch.float32)
    mean, matrix = (part.float() for part in zca_matrix(images))
    expected = whiten(images, mean, matrix)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whiten(images, mean, matrix), expected)


def test_constant_pixels_stay_finite() -> None:
    images = torch.full((4, 1, 2, 2), 7, dtype=torch.uint8)
    _, matrix = zca_matrix(images)
    torch.testing.assert_close(matrix, 0.1**-0.5 * torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(1, 3, 2, 4), (0, 3, 2, 4), (5, 24)])
def test_images_of_no_covariance_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="with N at least 2"):
        zca_matrix(torch.zeros(shape))


@pytest.mark.parametrize("epsilon", [0.0, -0.1, float("nan")])
def test_epsilon_must_be_positive(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon must be above 0"):
        zca_matrix(some_images(), epsilon)
