"""Pseudo-domain labels from low-frequency amplitude: eq. 4 and 5 of the paper (section 3.2)."""

import math
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "FrequencyWindow",
    "check_window",
    "low_frequency_amplitude",
    "low_frequency_spectrum",
    "rank_groups",
]

FrequencyWindow = Literal["half_width", "area"]
"""What a cropping ratio is a share of; see :func:`low_frequency_spectrum`."""


def low_frequency_amplitude(
    images: Tensor,
    ratio: float = 0.1,
    window: FrequencyWindow = "half_width",
    log: bool = False,
) -> Tensor:
    """Mean amplitude of the lowest frequencies of each image (eq. 4, 5).

    The discrete Fourier transform is taken per colour channel; the amplitude is averaged over the
    channels and over a window of frequencies around zero.

    Args:
        images: raw images in [0, 1], (N, C, H, W), any floating type; before normalisation, which
            would mix up dark and bright images.
        ratio: size of the window, as :func:`low_frequency_spectrum` takes it.
        window: kind of window, as :func:`low_frequency_spectrum` takes it.
        log: average log(1 + amplitude) in place of the amplitude, which is what the paper writes.

    Returns:
        One score per image, (N,), of the type of ``images``.

    Raises:
        ValueError: if ``images`` is not a four-dimensional floating tensor or ``ratio`` is out of
            range.
    """
    spectrum = low_frequency_spectrum(images, ratio, window)
    if log:
        spectrum = spectrum.log1p()
    return spectrum.mean(dim=(-3, -2, -1)).to(images.dtype)


def low_frequency_spectrum(
    images: Tensor, ratio: float = 0.1, window: FrequencyWindow = "half_width"
) -> Tensor:
    """Amplitudes of the lowest frequencies of each channel: the shifted and cropped |F| of eq. 5.

    The paper prints neither its cropping ratio nor what it is a ratio of, and cites two works that
    crop differently, so both are here.

    Args:
        images: as :func:`low_frequency_amplitude`.
        ratio: size of the window.
        window: ``"half_width"`` of FDA (Yang and Soatto, CVPR 2020): (2b + 1) x (2b + 1)
            frequencies with b = floor(ratio * min(H, W)), for a ratio in [0, 0.5). ``"area"`` of
            FACT (Xu et al., CVPR 2021): floor(H * sqrt(ratio)) x floor(W * sqrt(ratio)), for a
            ratio in (0, 1]; an even number of frequencies has one more negative one.

    Returns:
        (N, C, h, w), frequencies ascending along both axes, the zero frequency at (h // 2, w // 2);
        of the type of ``images``, but not below float32.

    Raises:
        ValueError: as :func:`low_frequency_amplitude`, or the window holds no frequency.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            "images must be a floating (N, C, H, W) tensor in [0, 1], "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    check_window("ratio", ratio, window)
    height, width = images.shape[-2:]
    if window == "half_width":
        half = math.floor(ratio * min(height, width))
        sides = (2 * half + 1, 2 * half + 1)
    else:
        share = math.sqrt(ratio)
        sides = (int(height * share), int(width * share))
        if min(sides) == 0:
            raise ValueError(
                f"the area ratio {ratio} of {height}x{width} images leaves no frequency: use a "
                f"ratio of at least {1 / min(height, width) ** 2:.2g}"
            )
    rows, columns = (
        torch.arange(-(side // 2), side - side // 2, device=images.device) for side in sides
    )
    # Transforms of half precision exist on few devices.
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    # Columns beyond the window are dropped before the second transform, and half of the others need
    # none: F(u, -v) of a real image is the conjugate of F(-u, v). Faster than the whole transform,
    # and than a product with two small matrices of waves.
    reach = max(int(columns[0].abs()), int(columns[-1]))
    spectrum: Tensor = torch.fft.fft(torch.fft.rfft(exact, dim=-1)[..., : reach + 1], dim=-2)
    right = spectrum.index_select(-2, rows % height)[..., : int(columns[-1]) + 1]
    left = spectrum.index_select(-2, -rows % height).index_select(-1, -columns[columns < 0])
    return torch.cat([left.abs(), right.abs()], dim=-1)


def check_window(name: str, ratio: float, window: FrequencyWindow) -> None:
    """Refuse a kind of window that does not exist and ratios that it does not have.

    Args:
        name: of the ratio, for the message.
        ratio: size of the window.
        window: kind of window, as :func:`low_frequency_spectrum` takes it.

    Raises:
        ValueError: saying what is allowed.
    """
    if window == "half_width":
        if not 0 <= ratio < 0.5:
            raise ValueError(f"{name} must be in [0, 0.5), got {ratio}")
    elif window == "area":
        if not 0 < ratio <= 1:
            raise ValueError(f"{name} must be in (0, 1] for an area, got {ratio}")
    else:
        raise ValueError(f"the window must be half_width or area, got {window!r}")


def rank_groups(scores: Tensor, num_groups: int, within: Tensor | None = None) -> Tensor:
    """Sort the scores and cut them into groups of equal size (section 3.2).

    Args:
        scores: one score per image, (N,).
        num_groups: number of groups, D.
        within: (N,) int64 from 0, e.g. classes; the images of each value are sorted and cut by
            themselves. None: all images together.

    Returns:
        Labels, (N,) int64: floor(D * rank / N) with the rank counted from the smallest score; equal
        scores keep their order. Group sizes differ by at most one (with ``within``, among the
        images of each value).

    Raises:
        ValueError: if ``num_groups`` is below 1, or a score is not finite.
    """
    if scores.ndim != 1:
        raise ValueError(f"scores must be one-dimensional, got shape {tuple(scores.shape)}")
    if num_groups < 1:
        raise ValueError(f"num_groups must be at least 1, got {num_groups}")
    if not bool(scores.isfinite().all()):
        raise ValueError("scores must be finite")
    if within is not None:
        labels = torch.empty(scores.shape, dtype=torch.int64, device=scores.device)
        for value in within.bincount().nonzero().flatten().tolist():
            members = within == value
            labels[members] = rank_groups(scores[members], num_groups)
        return labels
    order = scores.argsort(stable=True)
    positions = torch.arange(len(scores), device=scores.device)
    labels = torch.empty_like(positions)
    labels[order] = positions * num_groups // max(1, len(scores))
    return labels
