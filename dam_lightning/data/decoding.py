"""One image file to uint8 pixels, brought to RGB and to one size."""

import errno
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

__all__ = ["ListedFile", "Resize", "decode", "read_image"]

Resize = Literal["squash", "crop"]
"""How an image becomes a square: squeezed whole, or its middle cut out."""

_ORIENTATION = 0x0112
_PASSING = (errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT)
"""What is wrong with the machine, and not with an image."""

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


class ListedFile(NamedTuple):
    """An image file with what is known of it before it is read."""

    path: str
    """Relative to the dataset's folder, with forward slashes."""
    label: int
    domain: int


def read_image(path: str | Path) -> Image.Image:
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
        turn = _TURNS.get(opened.getexif().get(_ORIENTATION, 1)) if _may_turn(opened) else None
        image: Image.Image = opened if turn is None else opened.transpose(turn)
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
    return image if image.mode == "RGB" else image.convert("RGB")


def _may_turn(image: Image.Image) -> bool:
    """Whether there is anything that could hold a rotation mark; looking for one takes time."""
    return image.format != "JPEG" or bool({"exif", "xmp"} & image.info.keys())


def decode(path: str, image_size: int, resize: Resize) -> NDArray[np.uint8] | str:
    """Read an image file as (3, image_size, image_size) pixels, or say why that is not possible.

    Args:
        path: the file.
        image_size: height and width of the result in pixels. Images of another size are resized
            bilinearly with antialiasing.
        resize: ``"squash"`` does not keep the aspect ratio, as usual for domain generalisation (as
            DomainBed does it); ``"crop"`` keeps it and cuts out the middle.

    Raises:
        OSError: the system failed, and may not the next time.
    """
    size = (image_size, image_size)
    try:
        image = read_image(path)
        if resize == "crop":
            image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        elif image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
    # There is no telling what Pillow raises of damaged files.
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _PASSING:
            raise
        # The path is named anyway.
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return np.asarray(image).transpose(2, 0, 1)
