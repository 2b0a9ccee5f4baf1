"""Differentiable Siamese augmentation, one operation and one image at a time.

Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021).
Works in normalised space, so that 0 is the mean colour. The parameters are plain numbers; nothing
is drawn here.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")

CROP_RATIO = 0.125
CUTOUT_RATIO = 0.5
SCALE_RATIO = 1.2
ROTATE_DEGREES = 15.0


def brightness(images: Tensor, offset: float) -> Tensor:
    return images + offset


def saturation(images: Tensor, factor: float) -> Tensor:
    """Move every pixel away from (or towards) the mean of its own channels."""
    changed = []
    for image in images:
        grey = image.mean(dim=0, keepdim=True)
        changed.append((image - grey) * factor + grey)
    return torch.stack(changed)


def contrast(images: Tensor, factor: float) -> Tensor:
    """Move every pixel away from (or towards) the mean of its whole image."""
    changed = []
    for image in images:
        mean = image.mean()
        changed.append((image - mean) * factor + mean)
    return torch.stack(changed)


def crop(images: Tensor, row_shift: int, column_shift: int) -> Tensor:
    """``out[i, j] = x[i + row_shift, j + column_shift]``, 0 outside."""
    _, _, height, width = images.shape
    zero = torch.zeros_like(images[:, :, 0, 0])
    rows = []
    for i in range(height):
        row = []
        for j in range(width):
            source_i = i + row_shift
            source_j = j + column_shift
            if 0 <= source_i < height and 0 <= source_j < width:
                row.append(images[:, :, source_i, source_j])
            else:
                row.append(zero)
        rows.append(torch.stack(row, dim=-1))
    return torch.stack(rows, dim=-2)


def cutout(images: Tensor, row: int, column: int, side_h: int, side_w: int) -> Tensor:
    """Set the rectangle around (row, column) to 0; indices outside are clamped to the border."""
    _, _, height, width = images.shape
    kept = torch.ones(height, width, dtype=images.dtype, device=images.device)
    for a in range(side_h):
        for b in range(side_w):
            i = min(max(row - side_h // 2 + a, 0), height - 1)
            j = min(max(column - side_w // 2 + b, 0), width - 1)
            kept[i, j] = 0
    return images * kept


def flip(images: Tensor) -> Tensor:
    """Mirror left and right."""
    width = images.shape[-1]
    columns = [images[..., width - 1 - j] for j in range(width)]
    return torch.stack(columns, dim=-1)


def warp(images: Tensor, theta: list[list[float]]) -> Tensor:
    """Bilinear samples at ``theta @ (x, y, 1)`` of every point; corners aligned, 0 outside."""
    matrix = torch.tensor(theta, dtype=images.dtype, device=images.device)
    matrices = matrix.expand(len(images), 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def scale(images: Tensor, sx: float, sy: float) -> Tensor:
    """A factor below 1 zooms in; ``sx`` is horizontal."""
    return warp(images, [[sx, 0.0, 0.0], [0.0, sy, 0.0]])


def rotate(images: Tensor, degrees: float) -> Tensor:
    theta = degrees / 180.0 * math.pi
    return warp(
        images,
        [[math.cos(theta), math.sin(-theta), 0.0], [math.sin(theta), math.cos(theta), 0.0]],
    )


def apply(images: Tensor, operation: str, uniforms: Sequence[float]) -> Tensor:
    """One operation on a batch (B, C, H, W) that shares its parameters.

    ``uniforms`` are three numbers in [0, 1); this function fixes how they become parameters.
    """
    u0, u1, u2 = (float(u) for u in uniforms)
    _, _, height, width = images.shape
    if operation == "color":
        images = brightness(images, u0 - 0.5)
        images = saturation(images, 2 * u1)
        return contrast(images, u2 + 0.5)
    if operation == "crop":
        s_h = int(height * CROP_RATIO + 0.5)
        s_w = int(width * CROP_RATIO + 0.5)
        row_shift = math.floor(u0 * (2 * s_h + 1)) - s_h
        column_shift = math.floor(u1 * (2 * s_w + 1)) - s_w
        return crop(images, row_shift, column_shift)
    if operation == "cutout":
        side_h = int(height * CUTOUT_RATIO + 0.5)
        side_w = int(width * CUTOUT_RATIO + 0.5)
        row = math.floor(u0 * (height + 1 - side_h % 2))
        column = math.floor(u1 * (width + 1 - side_w % 2))
        return cutout(images, row, column, side_h, side_w)
    if operation == "flip":
        return flip(images) if u0 < 0.5 else images
    if operation == "scale":
        sx = u0 * (SCALE_RATIO - 1 / SCALE_RATIO) + 1 / SCALE_RATIO
        sy = u1 * (SCALE_RATIO - 1 / SCALE_RATIO) + 1 / SCALE_RATIO
        return scale(images, sx, sy)
    if operation == "rotate":
        return rotate(images, (u0 - 0.5) * 2 * ROTATE_DEGREES)
    raise ValueError(f"unknown operation {operation!r}, choose from {OPERATIONS}")


def apply_per_sample(images: Tensor, operation: str, uniforms: Sequence[Sequence[float]]) -> Tensor:
    """One operation for the batch, parameters of its own for each image; ``uniforms`` is (B, 3)."""
    changed = []
    for image, own in zip(images, uniforms, strict=True):
        changed.append(apply(image.unsqueeze(0), operation, own)[0])
    return torch.stack(changed)
