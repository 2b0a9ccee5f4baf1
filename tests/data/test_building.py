"""Many image files into a cache, in pieces, with interruptions."""

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dam_lightning.data import Split, building, decoding, resident
from dam_lightning.data.building import build_splits
from dam_lightning.data.decoding import ListedFile, read_image
from dam_lightning.data.resident import content_fingerprint
from dam_lightning.data.split_cache import read_splits

SIZE = 8
NAMES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def _pieces_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_PIECE_BYTES", 3 * 3 * SIZE * SIZE)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """20 images, all different."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def listed(first: int = 13, count: int = 20) -> dict[str, list[ListedFile]]:
    files = [ListedFile(f"{number}.png", number % 2, number // 10) for number in range(count)]
    return {"train": files[:first], "test": files[first:]}


def build(cache: Path, images: Path, **options: bool) -> tuple[dict[str, Split], dict[str, str]]:
    cache.mkdir(exist_ok=True)
    build_splits(cache, images, listed(), NAMES, SIZE, **options)
    found = read_splits(cache)
    assert found is not None
    return found


def check(cache: Path, images: Path, left_out: tuple[int, ...] = ()) -> None:
    """Against every image read by itself."""
    found = read_splits(cache)
    assert found is not None
    for name, files in listed().items():
        split = found[0][name]
        kept = [file for file in files if int(file.path.removesuffix(".png")) not in left_out]
        expected = [
            np.asarray(
                read_image(images / file.path).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            ).transpose(2, 0, 1)
            for file in kept
        ]
        np.testing.assert_array_equal(split.images.numpy(), np.stack(expected))
        assert split.labels.tolist() == [file.label for file in kept]
        assert split.domains.tolist() == [file.domain for file in kept]
        assert split.paths == [file.path for file in kept]
    assert found[1] == {"fingerprint": content_fingerprint(found[0]["train"], NAMES)}
    assert not (cache / "decoded.log").exists()


@pytest.mark.parametrize("cores", [1, 2])
def test_the_pieces_make_the_whole(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(building, "_cores", lambda: cores)
    before = torch.get_rng_state()
    build(tmp_path / "cache", images)
    check(tmp_path / "cache", images)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("cores", [1, 2])
def test_what_is_left_out_leaves_no_gap(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(building, "_cores", lambda: cores)
    for number in (0, 4, 5, 12, 19):
        (images / f"{number}.png").write_text("no image")
    build(tmp_path / "cache", images, skip_unreadable=True)
    check(tmp_path / "cache", images, (0, 4, 5, 12, 19))


def test_a_refused_build_leaves_no_cache(tmp_path: Path, images: Path) -> None:
    (images / "7.png").write_text("no image")
    with pytest.raises(ValueError, match=r"1 of 20 images cannot be read: .*7\.png \("):
        build(tmp_path / "cache", images)
    assert not (tmp_path / "cache").exists()


def decoded_ones(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from now on, in this process."""
    monkeypatch.setattr(building, "_cores", lambda: 1)
    seen: list[str] = []
    decode = building.decode

    def watched(path: str, *rest: object) -> object:
        seen.append(Path(path).name)
        return decode(path, *rest)

    monkeypatch.setattr(building, "decode", watched)
    return seen


def interrupt(cache: Path, images: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Stop a build when so many pieces are done."""
    decode_all = building._decode_all

    def some(*given: object) -> Iterator[object]:
        for number, piece in enumerate(decode_all(*given)):
            if number == after:
                raise KeyboardInterrupt
            yield piece

    with monkeypatch.context() as patched:
        patched.setattr(building, "_cores", lambda: 1)
        patched.setattr(building, "_decode_all", some)
        with pytest.raises(KeyboardInterrupt):
            build(cache, images)
    assert read_splits(cache) is None


def test_an_interrupted_build_goes_on(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    interrupt(cache, images, monkeypatch, after=3)
    interrupt(cache, images, monkeypatch, after=1)
    seen = decoded_ones(monkeypatch)
    build(cache, images)
    assert seen == [f"{number}.png" for number in range(12, 20)]
    check(cache, images)


def test_pieces_that_did_not_reach_the_disk_are_decoded_again(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is what was cut off in the log, or unreadable, perhaps for a moment."""
    cache = tmp_path / "cache"
    content = (images / "6.png").read_bytes()
    (images / "6.png").write_text("no image")
    interrupt(cache, images, monkeypatch, after=4)
    (images / "6.png").write_bytes(content)
    with (cache / "train.images").open("r+b") as file:
        file.seek(4 * 3 * SIZE * SIZE)
        file.write(bytes(10))
    log = (cache / "decoded.log").read_text()
    (cache / "decoded.log").write_text(log[:-20])
    seen = decoded_ones(monkeypatch)
    build(cache, images)
    assert seen == [f"{number}.png" for number in range(3, 20)]
    check(cache, images)


def test_files_of_another_size_are_not_taken_over(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    interrupt(cache, images, monkeypatch, after=3)
    with (cache / "train.images").open("ab") as file:
        file.write(b"x")
    seen = decoded_ones(monkeypatch)
    build(cache, images)
    assert len(seen) == 20
    check(cache, images)


def killed_in_the_middle(cache: str, images: str) -> None:
    """Runs in a process of its own."""
    decode_all = building._decode_all

    def some(*given: object) -> Iterator[object]:
        for number, piece in enumerate(decode_all(*given)):
            if number == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            yield piece

    resident._PIECE_BYTES = 3 * 3 * SIZE * SIZE
    building._cores = lambda: 2
    building._decode_all = some
    build(Path(cache), Path(images))


def test_a_killed_build_goes_on(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=killed_in_the_middle, args=(str(cache), str(images)))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert read_splits(cache) is None
    seen = decoded_ones(monkeypatch)
    build(cache, images)
    assert 0 < len(seen) <= 8
    check(cache, images)


def test_a_disk_without_room_is_named_before_anything_is_decoded(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = decoded_ones(monkeypatch)
    usage = SimpleNamespace(total=10**6, used=10**6 - 20 * 192 + 1, free=20 * 192 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"20 images of 8 x 8 pixels need .* lower image_size"):
        build(tmp_path / "cache", images)
    assert seen == []
    usage.free += 1
    build(tmp_path / "cache", images)
    check(tmp_path / "cache", images)


@pytest.mark.parametrize("cores", [1, 2])
def test_a_disk_that_becomes_full_leaves_no_usable_cache(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    """Where the system cannot take the space beforehand."""
    digest = building.piece_digest

    def full(pixels: torch.Tensor) -> str:
        if torch.equal(pixels[0], last):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return digest(pixels)

    build(tmp_path / "other", images)
    found = read_splits(tmp_path / "other")
    assert found is not None
    last = found[0]["test"].images[3]
    with monkeypatch.context() as patched:
        patched.setattr(building, "_cores", lambda: cores)
        patched.setattr(building, "piece_digest", full)
        with pytest.raises(OSError, match="No space left on device") as error:
            build(tmp_path / "cache", images)
    assert error.value.errno == errno.ENOSPC
    assert read_splits(tmp_path / "cache") is None
    build(tmp_path / "cache", images)
    check(tmp_path / "cache", images)


def test_a_file_system_that_cannot_take_space_beforehand_will_do(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The C library then writes into the file, which must not be open to append to."""

    def emulated(descriptor: int, start: int, size: int) -> None:
        assert not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
        os.pwrite(descriptor, b"\0", start + size - 1)

    monkeypatch.setattr(os, "posix_fallocate", emulated)
    build(tmp_path / "cache", images)
    check(tmp_path / "cache", images)


@pytest.mark.parametrize("cores", [1, 2])
def test_a_failing_machine_is_no_unreadable_image(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    read = decoding.read_image

    def failing(path: str) -> Image.Image:
        if path.endswith("/7.png"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(building, "_cores", lambda: cores)
        patched.setattr(decoding, "read_image", failing)
        with pytest.raises(OSError, match=r"Input/output error: .*7\.png"):
            build(tmp_path / "cache", images, skip_unreadable=True)
    assert read_splits(tmp_path / "cache") is None
    build(tmp_path / "cache", images)
    check(tmp_path / "cache", images)


def test_large_files_are_on_the_disk_before_the_index(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        assert not (tmp_path / "cache" / "index.safetensors").exists()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(building, "VERIFIED_BYTES", 10 * 3 * SIZE * SIZE)
    build(tmp_path / "cache", images)
    assert synced == ["train.images"]


def test_an_interruption_while_gaps_are_closed_loses_nothing(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "4.png").write_text("no image")
    with monkeypatch.context() as patched:
        patched.setattr(building, "content_fingerprint", interrupted)
        patched.setattr(building, "_to_disk", interrupted)
        patched.setattr(Path, "replace", interrupted_unless_log)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "cache", images, skip_unreadable=True)
    seen = decoded_ones(monkeypatch)
    build(tmp_path / "cache", images, skip_unreadable=True)
    assert seen == ["3.png", "4.png", "5.png"]
    check(tmp_path / "cache", images, (4,))


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


replace = Path.replace


def interrupted_unless_log(path: Path, target: Path) -> Path:
    if target.name.endswith(".images"):
        raise KeyboardInterrupt
    return replace(path, target)
