"""Gathering and the cache file."""

import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from dam_lightning.data.resident import (
    Split,
    content_fingerprint,
    default_cache_dir,
    part_fingerprint,
    piece_digests,
    piece_length,
    read_tensors,
    write_tensors,
)
from dam_lightning.files import written_beside


def make_split(number: int = 6) -> Split:
    pixels = np.random.default_rng(2).integers(0, 256, (number, 3, 4, 4), dtype=np.uint8)
    labels = torch.arange(number) % 2
    return Split(torch.from_numpy(pixels), labels, labels * 0, [f"{n}.png" for n in range(number)])


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0, 3)])
def test_gather_takes_indices_of_any_shape(shape: tuple[int, ...]) -> None:
    split = make_split()
    indices = torch.randint(0, 6, shape)
    images = split.gather(indices)
    assert images.shape == (*shape, 3, 4, 4)
    assert torch.equal(images, split.images[indices])
    images.zero_()  # a copy
    assert torch.equal(split.images, make_split().images)


def test_a_split_that_does_not_fit_together_is_refused() -> None:
    split = make_split()
    with pytest.raises(ValueError, match="differ in number"):
        Split(split.images, split.labels[:5], split.domains, split.paths)
    with pytest.raises(ValueError, match="uint8"):
        Split(split.images.float(), split.labels, split.domains, split.paths)
    with pytest.raises(ValueError, match="int64"):
        Split(split.images, split.labels.int(), split.domains, split.paths)


def test_a_subset_is_a_copy_of_some_images() -> None:
    split = make_split()
    for chosen in (torch.tensor([1, 4]), torch.arange(6) % 3 == 1):
        part = split.subset(chosen)
        assert torch.equal(part.images, split.images[[1, 4]])
        assert (part.labels.tolist(), part.domains.tolist()) == ([1, 0], [0, 0])
        assert part.paths == ["1.png", "4.png"]


def test_damage_to_a_cache_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    write_tensors(path, {"a": torch.arange(1000), "b": torch.ones(7)}, {"key": "value"})
    intact = path.read_bytes()
    assert read_tensors(path) is not None
    for length in (0, 4, 60, len(intact) // 2, len(intact) - 1):
        path.write_bytes(intact[:length])
        assert read_tensors(path) is None, length
    for position in (0, 3, 20, len(intact) // 2, len(intact) - 1):
        flipped = bytearray(intact)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        assert read_tensors(path) is None, position
    path.write_bytes(intact)
    assert read_tensors(path) is not None


def test_what_killed_writers_left_is_removed_a_day_later(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    with written_beside(path) as beside:
        left = beside.name
    with written_beside(tmp_path / "other.safetensors") as beside:
        of_another = beside.name
    new = f"{left[:-8]}new_0000"
    kept = [new, of_another, "other.safetensors", f"{left[:-8]}bak"]
    for name in (*kept, left):
        (tmp_path / name).touch()
        if name != new:
            os.utime(tmp_path / name, (0, 0))
    write_tensors(path, {"a": torch.ones(1)}, {})
    assert {file.name for file in tmp_path.iterdir()} == {*kept, path.name}


def test_writers_and_readers_at_once_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    tensors, metadata = {"a": torch.arange(50_000)}, {str(key): "value" for key in range(9)}
    write_tensors(path, tensors, metadata)
    errors: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(20):
                write_tensors(path, tensors, metadata)
        except BaseException as error:  # handed to the main thread
            errors.append(error)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers) or reads == 0:
        found = read_tensors(path)
        assert found is not None
        assert torch.equal(found[0]["a"], tensors["a"])
        assert found[1] == metadata
        reads += 1
    for writer in writers:
        writer.join()
    assert errors == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write the cache file .*file.* argument cache_dir"):
        write_tensors(tmp_path / "file" / "cache.safetensors", {"a": torch.ones(1)}, {})


def test_the_fingerprint_sees_every_part_of_the_training_data() -> None:
    names = ["cat", "dog"]
    original = content_fingerprint(make_split(), names)
    assert content_fingerprint(make_split(), names) == original
    assert content_fingerprint(make_split(), ["cat", "dot"]) != original
    assert content_fingerprint(make_split(5), names) != original
    for attribute in ("images", "labels", "domains"):
        changed = make_split()
        getattr(changed, attribute).view(-1)[-1] += 1
        assert content_fingerprint(changed, names) != original


def test_the_fingerprint_of_a_part_sees_the_whole_and_the_choice() -> None:
    chosen = torch.arange(6) % 2 == 0
    found = {part_fingerprint(whole, kept) for whole in "ab" for kept in (chosen, ~chosen)}
    assert len(found) == 4
    assert part_fingerprint("a", chosen.clone()) in found


def test_the_fingerprint_is_the_same_from_the_digests_of_the_pieces() -> None:
    split = make_split(100_000)
    digests = piece_digests(split.images)
    assert len(digests) == math.ceil(100_000 / piece_length((3, 4, 4))) == 2
    assert content_fingerprint(split, ["a"], digests) == content_fingerprint(split, ["a"])
    swapped = content_fingerprint(split, ["a"], digests[::-1])
    assert swapped != content_fingerprint(split, ["a"])


def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "dam_lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "dam_lightning"
