"""Image files of every kind, intact and not."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dam_lightning.data import Split
from dam_lightning.data.building import build_splits
from dam_lightning.data.decoding import ListedFile, Resize, read_image
from dam_lightning.data.folders import is_image
from dam_lightning.data.split_cache import read_splits


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def decoded(
    folder: Path,
    files: list[ListedFile],
    size: int,
    resize: Resize = "squash",
    skip_unreadable: bool = False,
) -> Split:
    return decoded_splits(folder, {"train": files}, size, resize, skip_unreadable)["train"]


def decoded_splits(
    folder: Path, files: dict[str, list[ListedFile]], size: int, *options: Any, **named: Any
) -> dict[str, Split]:
    """By way of a cache of their own."""
    with tempfile.TemporaryDirectory() as cache:
        build_splits(Path(cache), folder, files, ["cat", "dog", "emu"], size, *options, **named)
        found = read_splits(Path(cache))
    assert found is not None
    return found[0]


def pixel(path: Path, column: int, row: int = 0) -> tuple[int, ...]:
    image = read_image(path)
    assert image.mode == "RGB"
    found = image.getpixel((column, row))
    assert isinstance(found, tuple)
    return found


def test_decode_makes_rgb_squares(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    colour = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    grey = generator.integers(0, 256, (8, 8), dtype=np.uint8)
    wide = generator.integers(0, 256, (20, 40, 3), dtype=np.uint8)
    (tmp_path / "a b").mkdir()
    for name, pixels in (("colour.png", colour), ("a b/grey.png", grey), ("wide.png", wide)):
        Image.fromarray(pixels).save(tmp_path / name)
    files = [
        ListedFile("wide.png", 2, 1),
        ListedFile("colour.png", 0, 3),
        ListedFile("a b/grey.png", 1, 0),
    ]
    split = decoded(tmp_path, files, 8)
    assert split.images.shape == (3, 3, 8, 8)
    assert split.images.is_contiguous()
    assert split.labels.tolist() == [2, 0, 1]
    assert split.domains.tolist() == [1, 3, 0]
    assert split.paths == ["wide.png", "colour.png", "a b/grey.png"]
    np.testing.assert_array_equal(split.images[1].permute(1, 2, 0).numpy(), colour)
    np.testing.assert_array_equal(split.images[2].numpy(), np.stack([grey] * 3))
    # Against PyTorch's antialiased bilinear resize, which rounds a little differently.
    wide_tensor = torch.from_numpy(wide).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(
        wide_tensor, (8, 8), mode="bilinear", antialias=True, align_corners=False
    )
    assert (split.images[:1].double() - expected).abs().max() < 1.01


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white(tmp_path: Path, mode: str) -> None:
    """Left: half transparent black or opaque red; right: transparent, with black below."""
    path = tmp_path / "drawing.png"
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.paste((200, 0, 0, 255) if mode == "P" else (0, 0, 0, 128), (0, 0, 2, 2))
    if mode == "P":
        image = image.quantize(4)
        assert "transparency" in image.info or image.palette.mode == "RGBA"
    image.convert(mode).save(path) if mode == "LA" else image.save(path)
    assert pixel(path, 3) == (255, 255, 255)
    np.testing.assert_allclose(pixel(path, 0), (200, 0, 0) if mode == "P" else (127,) * 3, atol=1)


def test_grey_cmyk_and_sixteen_bits(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 100, 255]], dtype=np.uint8)).save(tmp_path / "grey.png")
    assert [pixel(tmp_path / "grey.png", x) for x in range(3)] == [(v,) * 3 for v in (0, 100, 255)]
    deep = np.array([[0, 100 * 256 + 7, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert [pixel(tmp_path / "deep.png", x) for x in range(3)] == [(v,) * 3 for v in (0, 100, 255)]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    np.testing.assert_allclose(pixel(tmp_path / "print.jpg", 3), (255, 0, 0), atol=3)


def test_a_camera_s_rotation_is_followed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    Image.fromarray(picture(4, 8)).save(tmp_path / "turned.png", exif=exif)
    turned = np.asarray(read_image(tmp_path / "turned.png"))
    np.testing.assert_array_equal(turned, np.rot90(picture(4, 8), -1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_every_rotation_is_followed_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(picture(4, 8)).save(path, exif=exif, lossless=True)
    with Image.open(path) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(expected))


def test_odd_tags_beside_the_rotation_do_no_harm(tmp_path: Path) -> None:
    """A text whose place lies beyond the end: Pillow reads it, but cannot write it anew."""
    header = b"Exif\0\0" + bytes.fromhex("4d4d002a00000008")
    tags = bytes.fromhex("0002 010000020000000600000026 011200030000000100060000 00000000")
    path = tmp_path / "odd.jpg"
    Image.new("RGB", (9, 7)).save(path, exif=header + tags + b"maker\0")
    with Image.open(path) as opened, pytest.raises(Exception, match="required argument"):
        ImageOps.exif_transpose(opened)
    assert read_image(path).size == (7, 9)


@pytest.mark.parametrize(
    ("error", "reason"), [(KeyError("tag"), "'tag'"), (RecursionError(), "RecursionError")]
)
def test_whatever_an_image_raises_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def broken(_: str) -> Image.Image:
        raise error

    monkeypatch.setattr("dam_lightning.data.decoding.read_image", broken)
    with pytest.raises(ValueError, match=rf"1 of 1 images cannot be read: .*a\.png \({reason}\)"):
        decoded(tmp_path, [ListedFile("a.png", 0, 0)], 4)


@pytest.mark.parametrize(
    "suffix", ["jpg", "jfif", "png", "ppm", "bmp", "tiff", "webp", "pgm", "gif"]
)
def test_formats(tmp_path: Path, suffix: str) -> None:
    values = np.full((6, 6, 3), (90, 90, 90), dtype=np.uint8)
    image = Image.fromarray(values)
    (image.convert("L") if suffix == "pgm" else image).save(tmp_path / f"image.{suffix}")
    assert is_image(f"image.{suffix}")
    split = decoded(tmp_path, [ListedFile(f"image.{suffix}", 0, 0)], 6)
    assert (split.images.int() - 90).abs().max() <= 1


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match=r"float\.tiff \(its pixels are floating-point numbers"):
        decoded(tmp_path, [ListedFile("float.tiff", 0, 0)], 4)


def test_integers_of_32_bits_are_refused(tmp_path: Path) -> None:
    """But 16 bits of a format that Pillow reads as 32 are not."""
    Image.fromarray(np.full((4, 4), 200, dtype=np.int32)).save(tmp_path / "deep.tiff")
    with pytest.raises(ValueError, match=r"deep\.tiff \(its pixels are 32-bit integers"):
        decoded(tmp_path, [ListedFile("deep.tiff", 0, 0)], 4)
    (tmp_path / "deep.pgm").write_bytes(b"P5 1 1 65535\n" + (40000).to_bytes(2, "big"))
    assert pixel(tmp_path / "deep.pgm", 0) == (156,) * 3


def test_squash_keeps_all_and_crop_the_middle(tmp_path: Path) -> None:
    bands = np.zeros((8, 16, 3), dtype=np.uint8)
    bands[:, 4:12] = 255
    Image.fromarray(bands).save(tmp_path / "bands.png")
    files = [ListedFile("bands.png", 0, 0)]
    assert decoded(tmp_path, files, 8, "crop").images.min() == 255
    squashed = decoded(tmp_path, files, 8, "squash").images[0, 0, 0]
    assert squashed[0] == squashed[-1] == 0
    assert squashed[4] == 255


def damaged(folder: Path) -> list[ListedFile]:
    """Six intact images, a text, an empty file, and files that end too soon."""
    for number in range(6):
        Image.fromarray(picture(16, 16, seed=number)).save(folder / f"good{number}.png")
    Image.fromarray(picture(64, 64)).save(folder / "cut.jpg")
    Image.fromarray(picture(64, 64)).save(folder / "cut.png")
    for name in ("cut.jpg", "cut.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:900])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.png").touch()
    names = ["good0.png", "text.jpg", "good1.png", "cut.jpg", "good2.png", "empty.png"]
    names += ["good3.png", "cut.png", "good4.png", "good5.png"]
    return [ListedFile(name, number % 3, number % 2) for number, name in enumerate(names)]


def test_unreadable_images_are_named_and_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"4 of 10 images cannot be read: .*text\.jpg") as error:
        decoded(tmp_path, damaged(tmp_path), 8)
    for name in ("text.jpg", "cut.jpg", "empty.png", "cut.png", "skip_unreadable: true"):
        assert name in str(error.value)
    assert "good" not in str(error.value)
    many = [ListedFile(f"missing{number}.jpg", 0, 0) for number in range(7)]
    with pytest.raises(ValueError, match=r"7 of 7 .* and 2 more\."):
        decoded(tmp_path, many, 8)


def test_splits_are_read_and_counted_together(tmp_path: Path) -> None:
    files = damaged(tmp_path)
    with pytest.raises(ValueError, match=r"4 of 10 images cannot be read"):
        decoded_splits(tmp_path, {"train": files[:4], "test": files[4:]}, 8)
    splits = decoded_splits(
        tmp_path, {"train": files[:4], "test": files[4:]}, 8, skip_unreadable=True
    )
    assert splits["train"].paths == ["good0.png", "good1.png"]
    assert splits["test"].paths == [f"good{number}.png" for number in range(2, 6)]


def test_unreadable_images_are_left_out_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("dam_lightning.data.building.rank_zero_info", said.append)
    files = damaged(tmp_path)
    split = decoded(tmp_path, files, 8, skip_unreadable=True)
    intact = [file for file in files if file.path.startswith("good")]
    expected = decoded(tmp_path, intact, 8)
    assert torch.equal(split.images, expected.images)
    assert split.paths == expected.paths
    assert torch.equal(split.labels, expected.labels)
    assert torch.equal(split.domains, expected.domains)
    (line,) = said
    assert line.startswith("4 of 10 images cannot be read")
    assert line.endswith("They are left out.")
