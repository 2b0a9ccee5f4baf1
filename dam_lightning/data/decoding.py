"""Image files to uint8 pixels: decoded in parallel, brought to RGB and to one size."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dam_lightning.data.resident import Split

__all__ = ["ListedFile", "Resize", "decode", "read_image"]

Resize = Literal["squash", "crop"]
"""How an image becomes a square: squeezed whole, or its middle cut out."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets an image upright, by its orientation tag (EXIF 2.3, section 4.6.4)."""

_NAMED = 5
"""Unreadable images that a message names; the others it counts."""


class ListedFile(NamedTuple):
    """An image file with what is known of it before it is read."""

    path: str
    """Relative to the dataset's folder, with forward slashes."""
    label: int
    domain: int


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB, as a person would see it.

    Transparent parts become white, cameras' rotation marks are followed, and grey images of 16 bits
    keep their upper 8. Of several frames the first is taken.

    Raises:
        OSError: the file is no image, or damaged.
        ValueError: its pixels are floating-point numbers or 32-bit integers, whose range is not
            known.
        Exception: whatever else a damaged file makes Pillow raise.
    """
    with Image.open(path) as opened:
        opened.load()
        # ImageOps.exif_transpose would also write the tags anew, which odd ones do not survive.
        turn = _TURNS.get(opened.getexif().get(_ORIENTATION, 1))
        image: Image.Image = opened.copy() if turn is None else opened.transpose(turn)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if image.mode == "I" and opened.format == "TIFF":
        raise ValueError("its pixels are 32-bit integers, whose range is not known")
    if image.mode.startswith("I"):
        # Pillow would cut off everything above 255.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        # What lies under transparent parts is anything, often black.
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image.convert("RGB")


def decode(
    root: Path,
    splits: Mapping[str, Sequence[ListedFile]],
    image_size: int,
    resize: Resize = "squash",
    skip_unreadable: bool = False,
) -> dict[str, Split]:
    """Read image files, in threads and with a progress bar.

    Args:
        root: the folder the paths are relative to.
        splits: what to read, in order.
        image_size: height and width of the result in pixels. Images of another size are resized
            bilinearly with antialiasing.
        resize: ``"squash"`` does not keep the aspect ratio, as usual for domain generalisation (as
            DomainBed does it); ``"crop"`` keeps it and cuts out the middle.
        skip_unreadable: leave out images that cannot be read, saying which, instead of refusing.

    Returns:
        The splits, with (N, 3, image_size, image_size) images on the CPU.

    Raises:
        ValueError: files cannot be read as images; names some of them and counts all. Or there is
            no memory for images of this size.
    """
    decoded: dict[str, Split] = {}
    unreadable: dict[str, str] = {}
    count = sum(len(files) for files in splits.values())
    # Pillow decodes and resizes outside Python's lock.
    with ThreadPoolExecutor() as pool, _progress() as progress:
        task = progress.add_task("", total=count)
        for name, files in splits.items():
            pixels = _room(len(files), image_size)
            paths = [root / file.path for file in files]
            read = partial(_read_into, size=(image_size, image_size), resize=resize)
            kept = []
            for position, reason in enumerate(pool.map(read, paths, pixels)):
                if reason is None:
                    kept.append(position)
                else:
                    unreadable[str(paths[position])] = reason
                progress.advance(task)
            decoded[name] = _split(pixels, files, kept)
    if unreadable:
        _report(unreadable, count, skip_unreadable)
    return decoded


def _room(count: int, image_size: int) -> NDArray[np.uint8]:
    """A place for every image."""
    shape = (count, image_size, image_size, 3)
    try:
        return np.empty(shape, dtype=np.uint8)
    except (MemoryError, ValueError) as error:  # more than there is, more than can be addressed
        raise ValueError(
            f"{count} images of {image_size} x {image_size} pixels take "
            f"{math.prod(shape) / 2**30:.0f} GiB, which this machine does not have: lower "
            "image_size"
        ) from error


def _read_into(
    path: Path, place: NDArray[np.uint8], size: tuple[int, int], resize: Resize
) -> str | None:
    """Fill one image's place, or say why not."""
    try:
        image = read_image(path)
        if resize == "crop":
            image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        elif image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
    # There is no telling what Pillow raises of damaged files.
    except Exception as error:
        # The path is named anyway.
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    place[:] = np.asarray(image)
    return None


def _split(pixels: NDArray[np.uint8], files: Sequence[ListedFile], kept: list[int]) -> Split:
    """The images that were read."""
    if len(kept) < len(files):
        pixels, files = pixels[kept], [files[position] for position in kept]
    return Split(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        torch.tensor([file.label for file in files], dtype=torch.int64),
        torch.tensor([file.domain for file in files], dtype=torch.int64),
        [file.path for file in files],
    )


def _report(unreadable: Mapping[str, str], count: int, skip: bool) -> None:
    """Name what cannot be read; an error unless it may be skipped."""
    named = [f"{path} ({reason})" for path, reason in list(unreadable.items())[:_NAMED]]
    more = f" and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
    listed = f"{len(unreadable)} of {count} images cannot be read: {', '.join(named)}{more}."
    if not skip:
        raise ValueError(
            f"{listed} Replace them with intact copies or remove them, or leave them out with "
            "skip_unreadable: true."
        )
    rank_zero_info(f"{listed} They are left out.")


def _progress() -> Progress:
    """A bar on the standard error; where that is no terminal, a line when all is done."""
    return Progress(
        TextColumn("Decoding"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
