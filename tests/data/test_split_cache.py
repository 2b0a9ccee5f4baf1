"""The cache of decoded splits."""

import errno
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from dam_lightning.data import Split, scratch, split_cache
from dam_lightning.data.resident import piece_length, write_tensors
from dam_lightning.data.split_cache import (
    load_splits,
    map_images,
    prepare_splits,
    read_splits,
    write_splits,
)

INDEX = "index.safetensors"


def make_split(number: int = 6, size: int = 4) -> Split:
    shape = (number, 3, size, size)
    pixels = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    labels = torch.arange(number) % 2
    return Split(torch.from_numpy(pixels), labels, labels * 0, [f"{n}.png" for n in range(number)])


def write(folder: Path) -> None:
    splits = {"train": make_split(), "test": make_split(3)}
    write_splits(folder, splits, {"fingerprint": "abc"})


def test_splits_survive_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    assert read_splits(folder) is None
    odd = make_split(6)
    odd.paths[:3] = ["a\nb.png", "é\udcff.png", "c d/e.png"]
    write_splits(folder, {"train": odd, "test": make_split(3)}, {"fingerprint": "abc"})
    found = read_splits(folder)
    assert found is not None
    splits, metadata = found
    assert metadata == {"fingerprint": "abc"}
    for name, expected in (("train", odd), ("test", make_split(3))):
        for attribute in ("images", "labels", "domains"):
            assert torch.equal(getattr(splits[name], attribute), getattr(expected, attribute))
        assert splits[name].paths == expected.paths
    names = sorted(path.name for path in folder.iterdir())
    assert names == [INDEX, "test.images", "train.images"]  # no temporary file is left


def test_what_is_written_into_mapped_images_stays_in_memory(tmp_path: Path) -> None:
    write(tmp_path / "cache")
    found = read_splits(tmp_path / "cache")
    assert found is not None
    found[0]["train"].images.zero_()
    again = read_splits(tmp_path / "cache")
    assert again is not None
    assert torch.equal(again[0]["train"].images, make_split().images)


def test_an_empty_split_is_kept(tmp_path: Path) -> None:
    write_splits(tmp_path, {"train": make_split(), "test": make_split(0)}, {})
    found = read_splits(tmp_path)
    assert found is not None
    assert (len(found[0]["test"]), found[0]["test"].paths) == (0, [])


def opened(folder: Path) -> Split:
    write(folder)
    found = read_splits(folder)
    assert found is not None
    return found[0]["train"]


@pytest.mark.parametrize("change", ["cut short", "longer", "other pixels"])
def test_a_file_that_changes_while_it_is_in_use(tmp_path: Path, change: str) -> None:
    """Told whenever images are asked for; of one cut short the process would die otherwise."""
    train = opened(tmp_path)
    part, whole = train.subset(torch.arange(2, 4)), make_split().images
    file = tmp_path / "train.images"
    with file.open("r+b") as writable:
        if change == "cut short":
            writable.truncate(0)
        elif change == "longer":
            writable.truncate(10_000)
        else:
            writable.write(b"x" * 9)
    os.utime(file, ns=(0, 0))
    for ask in (
        lambda: train.images,
        lambda: train.gather(torch.zeros(1).long()),
        lambda: part.gather(torch.zeros(1).long()),
        lambda: train.subset(torch.tensor([0, 3])),
        lambda: train.to(torch.device("cpu")),
    ):
        with pytest.raises(OSError, match=r"train\.images was changed while .*: start again"):
            ask()
    # Starting again mends it.
    train = load_splits(tmp_path, lambda: write(tmp_path))[0]["train"]
    assert torch.equal(train.images, whole)


def test_a_file_that_is_only_touched_or_taken_away(tmp_path: Path) -> None:
    train = opened(tmp_path)
    os.utime(tmp_path / "train.images", ns=(1, 1))
    assert torch.equal(train.images, make_split().images)
    (tmp_path / "train.images").unlink()
    (tmp_path / "train.images").touch()
    assert torch.equal(train.images, make_split().images)


def test_copies_are_in_memory(tmp_path: Path) -> None:
    """Those for other processes, and images picked out."""
    train = opened(tmp_path)
    copies = [pickle.loads(pickle.dumps(train)), train.subset(torch.tensor([0, 1, 2, 3, 5, 4]))]
    (tmp_path / "train.images").write_bytes(b"")
    assert torch.equal(copies[0].images, make_split().images)
    assert torch.equal(copies[1].images, make_split().images[[0, 1, 2, 3, 5, 4]])


def test_an_index_that_is_cut_short_while_it_is_in_use(tmp_path: Path) -> None:
    train = opened(tmp_path)
    (tmp_path / INDEX).write_bytes(b"")
    assert torch.equal(train.labels, make_split().labels)


@pytest.mark.parametrize("name", [INDEX, "train.images", "test.images"])
def test_damage_is_noticed(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    intact = (tmp_path / name).read_bytes()
    for position in (0, len(intact) // 2, len(intact) - 1):
        flipped = bytearray(intact)
        flipped[position] ^= 0x10
        (tmp_path / name).write_bytes(flipped)
        assert read_splits(tmp_path) is None, position
    for wrong in (b"", intact[:-1], intact + b"x"):
        (tmp_path / name).write_bytes(wrong)
        assert read_splits(tmp_path) is None, len(wrong)
    (tmp_path / name).unlink()
    assert read_splits(tmp_path) is None
    (tmp_path / name).write_bytes(intact)
    assert read_splits(tmp_path) is not None


def test_damage_to_names_and_shapes_is_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    intact = (tmp_path / INDEX).read_bytes()
    for old, new in (
        (b'"abc"', b'"abd"'),
        (b"3.png", b"7.png"),
        (b"[6, 3, 4, 4]", b"[6, 4, 3, 4]"),
        (b"train.labels", b"train.labelz"),
        (b'"digests"', b'"digestz"'),
    ):
        assert old in intact
        (tmp_path / INDEX).write_bytes(intact.replace(old, new, 1))
        assert read_splits(tmp_path) is None, old


def test_a_file_of_something_else_is_no_index(tmp_path: Path) -> None:
    write(tmp_path)
    for metadata in ({}, {"shapes": "["}, {"shapes": '{"train": [6, 3, 4, 4]}', "digests": "{}"}):
        write_tensors(tmp_path / INDEX, {"a": torch.ones(1)}, metadata)
        assert read_splits(tmp_path) is None


def test_of_a_large_set_pieces_all_over_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 256
    length = piece_length((3, size, size))
    split = make_split(9 * length + 1, size)
    piece_bytes = length * 3 * size * size
    monkeypatch.setattr(split_cache, "VERIFIED_BYTES", 3 * piece_bytes)
    write_splits(tmp_path, {"train": split}, {})
    intact = bytearray((tmp_path / "train.images").read_bytes())
    noticed = []
    for piece in range(10):
        intact[piece * piece_bytes] ^= 1
        (tmp_path / "train.images").write_bytes(intact)
        intact[piece * piece_bytes] ^= 1
        if read_splits(tmp_path) is None:
            noticed.append(piece)
    assert noticed == [0, 4, 8, 9]


def test_of_a_large_set_that_is_changed_all_pieces_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = piece_length((3, 256, 256))
    monkeypatch.setattr(split_cache, "VERIFIED_BYTES", 3 * length * 3 * 256 * 256)
    write_splits(tmp_path, {"train": make_split(9 * length, 256)}, {})
    found = read_splits(tmp_path)
    assert found is not None
    with (tmp_path / "train.images").open("r+b") as file:
        file.seek(length * 3 * 256 * 256)
        file.write(b"other")
    os.utime(tmp_path / "train.images", ns=(0, 0))
    with pytest.raises(OSError, match="was changed while"):
        found[0]["train"].gather(torch.zeros(1).long())


def counted(build: Callable[[], None]) -> tuple[list[int], Callable[[], None]]:
    calls: list[int] = []

    def counting() -> None:
        calls.append(1)
        build()

    return calls, counting


def test_a_cache_is_built_once_and_again_when_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    calls, build = counted(lambda: write(folder))
    prepare_splits(folder, build)
    prepare_splits(folder, build)
    first, _ = load_splits(folder, build)
    assert len(calls) == 1
    (folder / "train.images").write_bytes(b"")
    second, metadata = load_splits(folder, build)
    assert len(calls) == 2
    assert metadata == {"fingerprint": "abc"}
    assert torch.equal(second["train"].images, make_split().images)
    assert first["test"].paths == second["test"].paths


def test_one_that_cannot_be_read_back_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be read back after writing it"):
        load_splits(tmp_path / "cache", lambda: None)


def test_a_failed_build_leaves_nothing_behind_but_what_it_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "cache"

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        prepare_splits(folder, fail)
    assert not folder.exists()

    def interrupted() -> None:
        (folder / "train.images").write_bytes(b"part")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_splits(folder, interrupted)
    assert (folder / "train.images").read_bytes() == b"part"
    with FileLock(tmp_path / ".cache.lock", timeout=0):
        pass  # it was given back


def test_another_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    other = FileLock(tmp_path / ".cache.lock")
    other.acquire()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        write(folder)  # what the other process was about
        other.release()

    monkeypatch.setattr(scratch, "rank_zero_info", say)
    calls, build = counted(lambda: write(folder))
    prepare_splits(folder, build)
    assert calls == []
    assert said == [f"Waiting for another process, which writes {folder}"]


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot make files in .*file: .* with cache_dir"):
        prepare_splits(tmp_path / "file" / "cache", lambda: None)


def test_a_cache_that_does_not_fit_on_the_disk_is_named(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        OSError, match=r"cannot write the cache .*/cache \(No space left .*cache_dir"
    ):
        prepare_splits(tmp_path / "cache", full)


def test_a_cache_larger_than_memory_can_be_opened(tmp_path: Path) -> None:
    """A sparse file, which takes no room."""
    side = 2**12
    count = 2**40 // (3 * side * side)
    with (tmp_path / "train.images").open("wb") as file:
        file.truncate(count * 3 * side * side)
    images = map_images(tmp_path / "train.images", (count, 3, side, side))
    assert not images[-1].any()
    images[-1, 0, 0, 0] = 7
    assert images[-1].sum() == 7


def test_a_process_that_waited_for_one_that_failed_builds_itself(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    begun, results = threading.Event(), []

    def fail() -> None:
        begun.set()
        # Until the other waits.
        time.sleep(0.3)
        raise ValueError("broken")

    def first() -> None:
        with pytest.raises(ValueError, match="broken"):
            prepare_splits(folder, fail)
        results.append("failed")

    failing = threading.Thread(target=first)
    failing.start()
    begun.wait()
    prepare_splits(folder, lambda: write(folder))
    failing.join()
    assert results == ["failed"]
    assert read_splits(folder) is not None
