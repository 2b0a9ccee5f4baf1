"""Differentiable Siamese Augmentation (DSA), with its parameters drawn outside.

Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation (ICML 2021);
``DiffAugment`` in ``utils.py`` of VICO-UoE/DatasetCondensation, mode S: one operation per call.
Handing the same parameters to real and synthetic images is what makes it Siamese.

Colour, warp and cutout are three neutral-by-default stages of one pass, so groups with different
operations are augmented together, and the stages an operation does not use change no bit.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dam_lightning.functional.host import host_values, to_device

__all__ = [
    "DSA",
    "OPERATIONS",
    "AugmentationParameters",
    "augment",
    "augmentation_parameters",
    "strategy_operations",
]

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
"""The six operations, in the order of the original's strategy string."""

DSA = "_".join(OPERATIONS)
"""The strategy of the original for natural images; for digits it leaves out ``flip``."""

_CROP = 0.125  # largest shift, as a share of the side
_CUTOUT = 0.5  # side of the square, as a share of the side
_FLIP = 0.5  # probability
_SCALE = 1.2  # largest zoom in and out
_ROTATE = math.radians(15)  # largest angle either way

# A source pixel contributes to the output pixels whose sampling point lies less than one pixel
# away. In output coordinates these are at most this far from the image of the source pixel: the
# inverse of a zoom stretches one pixel to 1.2, a rotation turns a square of side 2 into one of
# half-diagonal extent cos 15 + sin 15.
_REACH = max(_SCALE, math.cos(_ROTATE) + math.sin(_ROTATE))
_TAPS = math.floor(2 * _REACH) + 1


class AugmentationParameters(NamedTuple):
    """What to do to each group (G, ...) or each image (N, ...); made by `augmentation_parameters`.

    Attributes:
        color: (..., 3) offset of brightness, factor of saturation, factor of contrast.
        warp: (..., 2, 3) affine map from output to source pixel, both as (column, row) counted from
            the centre of the image; orthogonal up to a scale of 1/1.2 to 1.2 per axis.
        cutout: (..., 4) first and last row, first and last column set to zero; none if last <
            first.
    """

    color: Tensor
    warp: Tensor
    cutout: Tensor

    def on(self, like: Tensor) -> "AugmentationParameters":
        """All three on the device and in the precision of a tensor; the host does not wait."""
        return AugmentationParameters(*(to_device(t.to(like.dtype), like.device) for t in self))


def strategy_operations(strategy: str) -> tuple[int, ...]:
    """The operations of a strategy such as ``"color_crop_cutout"``, as indices into `OPERATIONS`.

    Raises:
        ValueError: if the strategy names an unknown operation, or none.
    """
    names = strategy.split("_")
    unknown = [name for name in names if name not in OPERATIONS]
    if unknown:
        raise ValueError(
            f"augmentation {strategy!r}: {', '.join(map(repr, unknown))} is no operation; "
            f"join some of {', '.join(OPERATIONS)} by underscores"
        )
    return tuple(OPERATIONS.index(name) for name in names)


def augmentation_parameters(
    operations: Tensor, uniforms: Tensor, image_size: tuple[int, int]
) -> AugmentationParameters:
    """Turn draws into parameters.

    Args:
        operations: index into `OPERATIONS`, int64, (G,) for a group of images each, or (N,) per
            image.
        uniforms: numbers in [0, 1), (..., 3) with the leading dimensions of ``operations`` first,
            so (G, B, 3) gives each image of a group parameters of its own for the same operation.
        image_size: (H, W).

    Returns:
        Parameters with the leading dimensions of ``uniforms``, on its device and of its type.

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    if uniforms.shape[-1:] != (3,) or uniforms.shape[: operations.ndim] != operations.shape:
        raise ValueError(
            f"uniforms must be (..., 3) beginning with {tuple(operations.shape)}, the shape of "
            f"operations, got {tuple(uniforms.shape)}"
        )
    height, width = image_size
    first, second, third = uniforms.unbind(-1)
    operation = operations.reshape(operations.shape + (1,) * (first.ndim - operations.ndim))
    chosen = {name: operation == number for number, name in enumerate(OPERATIONS)}
    zero, one = torch.zeros_like(first), torch.ones_like(first)

    color = torch.stack([first - 0.5, 2 * second, third + 0.5], dim=-1)
    neutral = torch.stack([zero, one, one], dim=-1)
    color = torch.where(chosen["color"].unsqueeze(-1), color, neutral)

    angle = (2 * first - 1) * _ROTATE
    zoom_x, zoom_y = (u * (_SCALE - 1 / _SCALE) + 1 / _SCALE for u in (first, second))
    flip = torch.where(first < _FLIP, -one, one)
    cosine = torch.where(chosen["rotate"], angle.cos(), one)
    sine = torch.where(chosen["rotate"], angle.sin(), zero)
    scale_x = torch.where(chosen["scale"], zoom_x, torch.where(chosen["flip"], flip, cosine))
    scale_y = torch.where(chosen["scale"], zoom_y, cosine)
    shift_x = torch.where(chosen["crop"], _integer(second, -_shift(width), _shift(width)), zero)
    shift_y = torch.where(chosen["crop"], _integer(first, -_shift(height), _shift(height)), zero)
    warp = torch.stack(
        [
            torch.stack([scale_x, -sine, shift_x], dim=-1),
            torch.stack([sine, scale_y, shift_y], dim=-1),
        ],
        dim=-2,
    )

    box = []
    for uniform, size in ((first, height), (second, width)):
        side = int(size * _CUTOUT + 0.5)
        start = _integer(uniform, 0, size - side % 2) - side // 2
        box += [start.clamp(0, size - 1), (start + side - 1).clamp(0, size - 1)]
    nowhere = torch.stack([zero, -one, zero, -one], dim=-1)
    cutout = torch.where(chosen["cutout"].unsqueeze(-1), torch.stack(box, dim=-1), nowhere)
    return AugmentationParameters(color, warp, cutout)


def _shift(size: int) -> int:
    return int(size * _CROP + 0.5)


def _integer(uniform: Tensor, low: int, high: int) -> Tensor:
    """A uniform number in [0, 1) as a uniform integer in [low, high], still of floating type."""
    return (uniform * (high - low + 1)).floor().clamp(max=high - low) + low


def augment(images: Tensor, parameters: AugmentationParameters) -> Tensor:
    """Augment images; differentiable in them, with a deterministic backward on every device.

    Rotation turns pixels, so that right angles stay right; the original, made for square images,
    would shear others.

    Args:
        images: (N, C, H, W) with parameters per image, or (G, B, C, H, W) with parameters per group
            (G, ...) or per image (G, B, ...). In normalised space: zero, with which empty places
            are filled, is then the mean colour.
        parameters: from `augmentation_parameters` for this image size.

    Returns:
        Augmented images, same shape.

    Raises:
        ValueError: if the leading dimensions do not fit, or ``images`` is of a type too coarse for
            pixel coordinates (anything but float32 and float64).
    """
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images must be float32 or float64, got {images.dtype}")
    leading = parameters.color.shape[:-1]
    if images.ndim < 4 or images.shape[:-3][: len(leading)] != leading:
        raise ValueError(
            f"parameters for {tuple(leading)} do not fit images of shape {tuple(images.shape)}"
        )
    parameters = parameters.on(images)
    # One group is any number of images that share parameters: (P, S, C, H, W).
    grouped = images.reshape(leading.numel(), -1, *images.shape[-3:])
    color, warp, cutout = (t.reshape(leading.numel(), *t.shape[len(leading) :]) for t in parameters)
    if _is_needed(color, (0.0, 1.0, 1.0)):
        grouped = _color(grouped, color)
    if _is_needed(warp, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))):
        grouped = _warp(grouped, warp)
    if _is_needed(cutout, (0.0, -1.0, 0.0, -1.0)):
        grouped = grouped * _keep(cutout, images.shape[-2:])
    return grouped.reshape(images.shape)


def _is_needed(values: Tensor, neutral: Sequence[Any]) -> bool:
    """Whether a stage changes anything; taken for granted where looking is impossible."""
    seen = host_values(values)
    return seen is None or bool((seen != np.array(neutral)).any())


def _color(images: Tensor, color: Tensor) -> Tensor:
    """Brightness, saturation, contrast in this order; written so that neutral values are exact."""
    brightness, saturation, contrast = color[:, :, None, None, None, None].unbind(1)
    images = images + brightness
    images = images * saturation + images.mean(dim=-3, keepdim=True) * (1 - saturation)
    return images * contrast + images.mean(dim=(-3, -2, -1), keepdim=True) * (1 - contrast)


def _keep(cutout: Tensor, size: torch.Size) -> Tensor:
    """1 outside the box and 0 inside it: (P, 1, 1, H, W)."""
    top, bottom, left, right = cutout[:, :, None].unbind(1)
    row, column = (torch.arange(n, device=cutout.device) for n in size)
    rows, columns = (row >= top) & (row <= bottom), (column >= left) & (column <= right)
    inside = rows[:, :, None] & columns[:, None, :]
    return (~inside).to(cutout.dtype)[:, None, None]


def _warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Sample (P, S, C, H, W) bilinearly where the affine maps (P, 2, 3) say, zero outside."""
    warped: Tensor = _Warp.apply(images, matrix)
    return warped


class _Warp(torch.autograd.Function):
    """Bilinear sampling whose backward gathers too.

    The backward that PyTorch derives for a gather or for ``grid_sample`` adds into memory in
    whatever order a GPU's threads arrive. Here every source pixel collects what its few candidate
    output pixels owe it, in a fixed order. Both directions are linear in the images, and each is
    the other's derivative, so it can be differentiated any number of times.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor, matrix: Tensor) -> Tensor:
        return _weighted_sum(images, _sampled_pixels(matrix, images.shape[-2:]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (matrix,) = ctx.saved_tensors
        collected: Tensor = _WarpTransposed.apply(gradients[0], matrix)
        return collected, None


class _WarpTransposed(torch.autograd.Function):
    """The transpose of `_Warp`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, matrix: Tensor) -> Tensor:
        return _weighted_sum(gradient, _sampling_pixels(matrix, gradient.shape[-2:]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (matrix,) = ctx.saved_tensors
        return _warp(gradients[0], matrix), None


def _weighted_sum(images: Tensor, taps: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum of picked pixels: images (P, S, C, H, W), taps of flat index and weight (P, H * W)."""
    flat = images.reshape(images.shape[0], -1, images.shape[-2] * images.shape[-1])
    result = torch.zeros_like(flat)
    for index, weight in taps:
        picked = flat.gather(2, index.unsqueeze(1).expand(flat.shape))
        result = result + picked * weight.unsqueeze(1)
    return result.reshape(images.shape)


def _sampled_pixels(matrix: Tensor, size: torch.Size) -> Iterator[tuple[Tensor, Tensor]]:
    """For every output pixel: the four source pixels around its sampling point, with weights."""
    x, y = _transform(matrix, *_pixels(matrix, size), size)
    for column, row in _neighbours(x, y, reach=1, taps=2):
        yield _tap(column, row, _tent(x - column) * _tent(y - row), size)


def _sampling_pixels(matrix: Tensor, size: torch.Size) -> Iterator[tuple[Tensor, Tensor]]:
    """For every source pixel: the output pixels that may sample it, with the weights they give."""
    own_column, own_row = _pixels(matrix, size)
    centre_x, centre_y = _transform(_inverse(matrix), own_column, own_row, size)
    for column, row in _neighbours(centre_x, centre_y, reach=_REACH, taps=_TAPS):
        x, y = _transform(matrix, column, row, size)
        yield _tap(column, row, _tent(x - own_column) * _tent(y - own_row), size)


def _pixels(like: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Column and row of every pixel of a flattened image, (1, H * W) each."""
    row, column = (torch.arange(n, device=like.device, dtype=like.dtype) for n in size)
    return column.repeat(size[0]).unsqueeze(0), row.repeat_interleave(size[1]).unsqueeze(0)


def _transform(
    matrix: Tensor, column: Tensor, row: Tensor, size: torch.Size
) -> tuple[Tensor, Tensor]:
    """Apply the maps (P, 2, 3) about the centre of the image; whole-pixel maps stay exact."""
    centre_y, centre_x = ((n - 1) / 2 for n in size)
    column, row = column - centre_x, row - centre_y
    (xx, xy, x0), (yx, yy, y0) = (line.unsqueeze(2).unbind(1) for line in matrix.unbind(1))
    return xx * column + xy * row + x0 + centre_x, yx * column + yy * row + y0 + centre_y


def _inverse(matrix: Tensor) -> Tensor:
    """Inverse of affine maps (P, 2, 3); ``torch.linalg.inv`` would make the host wait for a GPU."""
    (xx, xy, x0), (yx, yy, y0) = (line.unbind(1) for line in matrix.unbind(1))
    determinant = xx * yy - xy * yx
    entries = [yy, -xy, xy * y0 - yy * x0, -yx, xx, yx * x0 - xx * y0]
    return (torch.stack(entries, dim=1) / determinant.unsqueeze(1)).reshape(-1, 2, 3)


def _neighbours(x: Tensor, y: Tensor, reach: float, taps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The whole-numbered points (column, row) nearer than ``reach`` to (x, y) on both axes."""
    left, top = (x - reach).ceil(), (y - reach).ceil()
    for down in range(taps):
        for right in range(taps):
            yield left + right, top + down


def _tent(distance: Tensor) -> Tensor:
    """Bilinear weight at a distance along one axis."""
    return (1 - distance.abs()).clamp(min=0)


def _tap(column: Tensor, row: Tensor, weight: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Flat index of a pixel, and its weight, which is zero outside the image."""
    height, width = size
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    return index.long(), weight * inside
