"""Pictures of what is learned: the condensed set, its masks and its views; tensors in, image out.

They know neither Lightning nor files.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from dam_lightning.callbacks.tiles import Page, Pixels, as_rgb, as_tiles, shortened, shrunk, wrapped

__all__ = ["condensed_picture", "mask_picture", "view_picture"]

_PER_CLASS = 10
_CLASSES = 50

_WIDTH = 1200
"""Width in pixels that tables of tiles are meant to have."""
_HEAT = 0.8
"""Share of the heat colour where a mask is blended over its image; the rest is the image."""


def condensed_picture(pixels: Tensor, labels: Tensor) -> Image.Image:
    """A grid, classes from left to right and their images below each other.

    At most the first 10 images of the first 50 classes are shown; the more classes, the smaller.

    Args:
        pixels: (M, C, H, W) in [0, 1].
        labels: (M,) int64.

    Returns:
        RGB, with a white frame two pixels wide around every image. Where there are at most 20
        classes, small images are enlarged by whole pixels, to be seen without a magnifying glass.
        Large images are averaged down.
    """
    shown = sorted(set(labels.tolist()))[:_CLASSES]
    side = 128 if len(shown) <= 10 else 64 if len(shown) <= 20 else 32
    pixels = shrunk(as_rgb(pixels), side)
    columns = [pixels[labels == label][:_PER_CLASS] for label in shown]
    rows = max(len(column) for column in columns)
    tiles = [
        column[row] if row < len(column) else column.new_ones(column.shape[1:])
        for row in range(rows)
        for column in columns
    ]
    grid = make_grid(tiles, nrow=len(columns), padding=2, pad_value=1)
    picture: Image.Image = to_pil_image(grid)
    zoom = max(1, side // max(pixels.shape[-2:])) if len(columns) <= 20 else 1
    return picture.resize((picture.width * zoom, picture.height * zoom), resample=0)


def mask_picture(pixels: Tensor, weights: Tensor, names: Sequence[str]) -> Image.Image:
    """A row for each image: the image, and every pseudo-domain's mask as a heat colour over it.

    The colour is the mean of the mask over the colour channels. Its scale runs from 0 to 1 in all
    pictures, so that masks which learned nothing show one colour, that of 1/D; a bar beside the
    rows explains it.

    Args:
        pixels: R images, (R, C, H, W) in [0, 1].
        weights: their masks, (R, D, C or 1, H, W), as of `domain_weights`.
        names: of the rows.

    Returns:
        RGB, about 1200 pixels wide or less.
    """
    domains = weights.shape[1]
    side = _tile_side(domains)
    grey = as_tiles(as_rgb(pixels).mean(1, keepdim=True), side)
    masks = [
        _blended(weights[:, domain].mean(1, keepdim=True), grey, side) for domain in range(domains)
    ]
    title = (
        f"Masks: the share of each of the {domains} pseudo-domains in every pixel (colour, mean "
        "over the channels), over the synthetic image (grey)"
    )
    return _table([as_tiles(pixels, side), *masks], names, title, bar=True)


def view_picture(
    images: Tensor,
    weights: Tensor,
    denormalise: Callable[[Tensor], Tensor],
    names: Sequence[str],
) -> Image.Image:
    """A row for each image: the image, and its view for every pseudo-domain.

    A view is the image times a mask, in normalised space, where zero is the data's mean colour:
    where a pseudo-domain has no share, its view is plain. Views are shown D times as strong, for
    they add up to the image and would be pale otherwise. So a mask that learned nothing shows the
    image itself, and where the contrast is above the image's the pseudo-domain has more than its
    equal share. What leaves the range of colours is clipped.

    Args:
        images: R images, (R, C, H, W), normalised.
        weights: their masks, (R, D, C or 1, H, W), as of `domain_weights`.
        denormalise: turns normalised images into pixels, as `CondensedSet.denormalise`.
        names: of the rows.

    Returns:
        RGB, about 1200 pixels wide or less.
    """
    domains = weights.shape[1]
    side = _tile_side(domains)
    views = [images * weights[:, domain] * domains for domain in range(domains)]
    title = (
        f"Domain views: the synthetic image times the mask of each pseudo-domain, {domains} times "
        "as strong; plain where the pseudo-domain has no share"
    )
    columns = [as_tiles(denormalise(shown), side) for shown in (images, *views)]
    return _table(columns, names, title)


def _tile_side(domains: int) -> int:
    """Of tiles for an image and so many pseudo-domains: readable, and within the width."""
    return max(64, min(128, (_WIDTH - 250) // (domains + 1) - 4))


def _heat(values: Pixels, grey: Pixels) -> Pixels:
    """Heat colours for 0 to 255, (...,), blended with grey levels of the same shape."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](values)[..., :3]
    mixed = _HEAT * colours + (1 - _HEAT) * grey[..., None] / 255
    blended: Pixels = (mixed * 255).round().astype(np.uint8)
    return blended


def _blended(masks: Tensor, grey: Pixels, side: int) -> Pixels:
    """Masks (R, 1, H, W) in [0, 1] as heat over grey tiles (R, h, w, 3): tiles like them."""
    return _heat(as_tiles(masks, side)[..., 0], grey[..., 0])


def _table(
    columns: Sequence[Pixels], names: Sequence[str], title: str, bar: bool = False
) -> Image.Image:
    """Tiles with names, of the images in the first column and of pseudo-domains in the others.

    Args:
        columns: each (R, h, w, 3).
        names: of the rows, R.
        title: above all.
        bar: whether to explain the heat colours.
    """
    rows, height, width = columns[0].shape[:3]
    domains = len(columns) - 1
    names = [shortened(name, 18) for name in names]
    gap, margin = 4, 10
    left = margin + 10 + int(7.5 * max(len(name) for name in names))
    # The images stand a little apart from what is made of them.
    xs = [left + (10 if column else 0) + column * (width + gap) for column in range(domains + 1)]
    right = xs[-1] + width + margin
    page_width = max(right + (130 if bar else 0), 480)
    lines = wrapped(title, page_width - 2 * margin)
    top = 12 + 18 * len(lines) + 44
    bottom = top + rows * (height + gap)
    page = Page(page_width, max(bottom, top + 120) + margin)
    for number, line in enumerate(lines):
        page.text(margin, 18 + 18 * number, line)
    # Names of pseudo-domains must not touch each other over narrow tiles.
    broken, size = "" if width >= 112 else "\n", 9 if width >= 80 else 8
    for column, x in enumerate(xs):
        label = f"pseudo-{broken}domain {column - 1}" if column else "image"
        page.text(x + width / 2, top - 6, label, ha="center", va="bottom", fontsize=size)
        for row, name in enumerate(names):
            y = top + row * (height + gap)
            page.paste(columns[column][row], x, y)
            if column == 0:
                page.text(left - 8, y + height / 2, name, ha="right")
    if bar:
        levels: Pixels = np.arange(256, dtype=np.uint8)[::-1].reshape(-1, 1)
        bar_height = max(100, min(300, bottom - gap - top))
        colours = _heat(levels, np.full_like(levels, 128))

        def draw(axes: Any) -> None:
            axes.imshow(colours, extent=(0, 1, 0, 1), aspect="auto")
            ticks = {1.0: "1", 1 / domains: f"1/{domains}, uniform"}
            if bar_height / domains > 14:
                ticks[0.0] = "0"
            axes.set_yticks(list(ticks), list(ticks.values()), fontsize=9)
            axes.yaxis.tick_right()
            axes.set_xticks([])
            axes.set_title("share", fontsize=9)

        page.plot((right + 14, top, 16, bar_height), draw)
    return page.image()
