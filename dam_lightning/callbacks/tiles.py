"""What all pictures share: tensors as tiles, and a page that tiles and text are laid out on."""

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Page", "Pixels", "as_rgb", "as_tiles", "shortened", "shrunk", "wrapped"]

Pixels = npt.NDArray[np.uint8]

_DPI = 100
_CHARACTER = 7.5
"""Width of a character in pixels, generously."""


def as_rgb(pixels: Tensor) -> Tensor:
    """The images as three channels that a screen can show.

    Args:
        pixels: (N, C, H, W).

    Returns:
        (N, 3, H, W): the first three channels, or the first one as grey where there are fewer.
    """
    return pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1].expand(-1, 3, -1, -1)


def as_tiles(pixels: Tensor, side: int) -> Pixels:
    """Images as 8-bit tiles whose longer side is about ``side`` and never more.

    Small images are enlarged by whole pixels, so that every pixel stays a square; large ones are
    averaged down.

    Args:
        pixels: (N, C, H, W) in [0, 1], any floating type, on any device.
        side: in pixels, at least 1.

    Returns:
        (N, height, width, 3).
    """
    images = shrunk(as_rgb(pixels.detach().float().cpu()).clamp(0, 1), side)
    zoom = side // max(images.shape[-2:])
    images = images.repeat_interleave(zoom, -2).repeat_interleave(zoom, -1)
    tiles: Pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return tiles


def shrunk(images: Tensor, side: int) -> Tensor:
    """Images averaged down until their longer side is at most ``side``; small ones as they are.

    Args:
        images: (N, C, H, W), floating.
        side: in pixels, at least 1.

    Returns:
        (N, C, height, width).
    """
    height, width = images.shape[-2:]
    scale = side / max(height, width)
    if scale >= 1:
        return images
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return interpolate(images, size=size, mode="area")


def shortened(name: str, length: int) -> str:
    """The name, or its beginning and an ellipsis, in at most ``length`` characters."""
    return name if len(name) <= length else name[: length - 1] + "…"


def wrapped(text: str, width: int) -> list[str]:
    """Lines of text that are at most ``width`` pixels wide."""
    return textwrap.wrap(text, max(20, int(width / _CHARACTER)))


class Page:
    """A white page with text and plots set by matplotlib, and tiles pasted on it pixel by pixel.

    Positions are in pixels from the top left corner. Nothing global is touched: no pyplot, and the
    reader's own matplotlib settings do not count.

    Args:
        width: in pixels.
        height: in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self._drawn: list[Callable[[Figure], object]] = []
        self._pasted: list[tuple[Pixels, int, int]] = []

    def text(self, x: float, y: float, text: str, **options: Any) -> None:
        """Set text, by default with its left end at ``x`` and its middle at ``y``.

        Args:
            x: in pixels from the left.
            y: in pixels from the top.
            text: as it is; a dollar sign is a dollar sign.
            options: of `matplotlib.text.Text`.
        """
        options = {"va": "center", "fontsize": 9, "parse_math": False, **options}
        at = (x / self.width, 1 - y / self.height)
        self._drawn.append(lambda figure: figure.text(*at, text, **options))

    def plot(self, box: tuple[int, int, int, int], draw: Callable[[Any], object]) -> None:
        """Let ``draw`` fill axes whose inside is ``box``: left, top, width and height in pixels."""
        left, top, width, height = box
        rectangle = (
            left / self.width,
            1 - (top + height) / self.height,
            width / self.width,
            height / self.height,
        )
        self._drawn.append(lambda figure: draw(figure.add_axes(rectangle)))

    def paste(self, tile: Pixels, x: int, y: int) -> None:
        """Put a tile, (height, width, 3), with its top left corner at (x, y), over all else."""
        self._pasted.append((tile, x, y))

    def image(self) -> Image.Image:
        """The page, RGB."""
        # Here, because importing it takes as long as drawing.
        from matplotlib import style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        with style.context("default"):
            # Half a pixel more, lest rounding makes the canvas one pixel smaller.
            inches = ((self.width + 0.5) / _DPI, (self.height + 0.5) / _DPI)
            figure = Figure(figsize=inches, dpi=_DPI)
            canvas: Any = FigureCanvasAgg(figure)
            for draw in self._drawn:
                draw(figure)
            canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        for tile, x, y in self._pasted:
            picture.paste(Image.fromarray(tile), (x, y))
        return picture
