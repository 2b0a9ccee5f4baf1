"""Pseudo-domain labels from low-frequency amplitude, one image at a time, in NumPy and complex128.

Window as in Fourier domain adaptation (Yang and Soatto, CVPR 2020): half-width
b = floor(ratio * shorter side), (2 b + 1)^2 frequencies around the zero frequency.
"""

import math

import numpy as np
from numpy.typing import NDArray


def low_frequency_amplitude(image: NDArray[np.float64], ratio: float = 0.1) -> float:
    """Mean amplitude over channels and window of one image (C, H, W) in [0, 1]."""
    channels, height, width = image.shape
    half = math.floor(ratio * min(height, width))
    row, column = height // 2, width // 2
    total = 0.0
    count = 0
    for c in range(channels):
        spectrum = np.fft.fft2(image[c].astype(np.complex128))
        amplitude = np.fft.fftshift(np.abs(spectrum))
        for i in range(row - half, row + half + 1):
            for j in range(column - half, column + half + 1):
                total += float(amplitude[i, j])
                count += 1
    return total / count


def rank_groups(scores: list[float], num_groups: int) -> list[int]:
    """Equal slices of the ascending order; equal scores keep the order of their indices."""
    order = sorted((score, index) for index, score in enumerate(scores))
    labels = [0] * len(scores)
    for rank, (_, index) in enumerate(order):
        labels[index] = num_groups * rank // len(scores)
    return labels


def pseudo_domains(
    images: NDArray[np.uint8], num_domains: int, ratio: float = 0.1
) -> tuple[list[float], list[int]]:
    """Scores and labels of raw images (N, C, H, W), 0 to 255."""
    scores = [low_frequency_amplitude(image.astype(np.float64) / 255.0, ratio) for image in images]
    return scores, rank_groups(scores, num_domains)
