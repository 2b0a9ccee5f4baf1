"""CIFAR-10 and CIFAR-100 from their original files, downloaded or not."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from dam_lightning import CIFAR10, CIFAR100


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dam_lightning"


def ready(root: Path, **options: Any) -> CIFAR10:
    data = CIFAR10(str(root), **options)
    data.prepare_data()
    data.setup()
    return data


def test_the_originals_are_read_once(
    tiny_cifar10: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ready(tiny_cifar10)
    (folder,) = cache.iterdir()
    file = folder / "train.images"
    built: list[None] = []
    build = CIFAR10._build
    monkeypatch.setattr(CIFAR10, "_build", lambda self: built.append(build(self)))
    second = ready(tiny_cifar10)
    assert not built
    damaged = file.read_bytes()[:-5]
    file.unlink()  # the first two have its content mapped into memory
    file.write_bytes(damaged)
    third = ready(tiny_cifar10)
    assert len(built) == 1
    for other in (second, third):
        assert other.fingerprint == first.fingerprint
        for name in ("train", "test"):
            assert torch.equal(getattr(other, name).images, getattr(first, name).images)
            assert torch.equal(getattr(other, name).labels, getattr(first, name).labels)
            assert getattr(other, name).paths == getattr(first, name).paths


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_images_and_labels_are_those_of_the_files(tiny_cifar10: Path, inner: str) -> None:
    data = ready(tiny_cifar10 / inner, download=False)
    assert (len(data.train), len(data.test)) == (500, 100)
    assert data.image_shape == (3, 32, 32)
    assert (data.num_classes, data.domain_names) == (10, ["all"])
    for split, names in (
        (data.train, [f"data_batch_{n}" for n in range(1, 6)]),
        (data.test, ["test_batch"]),
    ):
        batches = [
            pickle.loads((tiny_cifar10 / "cifar-10-batches-py" / name).read_bytes())
            for name in names
        ]
        pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        np.testing.assert_array_equal(split.images, pixels)
        assert split.labels.tolist() == [label for batch in batches for label in batch["labels"]]
    assert len(set(data.train.paths)) == 500


def test_it_is_downloaded_where_it_is_missing(tiny_cifar10: Path, tmp_path: Path) -> None:
    expected = ready(tiny_cifar10).fingerprint
    assert ready(tmp_path / "new" / "folder").fingerprint == expected
    shutil.rmtree(tmp_path / "new" / "folder" / "cifar-10-batches-py")
    with pytest.raises(FileNotFoundError, match=r"No intact CIFAR-10 in .*new"):
        ready(tmp_path / "new" / "folder", download=False)


def test_a_damaged_file_is_never_unpickled(tiny_cifar10: Path, cache: Path, tmp_path: Path) -> None:
    """But replaced, where downloading is allowed."""
    file = tiny_cifar10 / "cifar-10-batches-py" / "data_batch_3"
    expected = ready(tiny_cifar10).fingerprint
    shutil.rmtree(cache)

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "exploded",)

    file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileNotFoundError, match=r"No intact CIFAR-10 .* download: true, or fetch"):
        ready(tiny_cifar10, download=False)
    assert ready(tiny_cifar10).fingerprint == expected
    assert not (tmp_path / "exploded").exists()


def test_a_download_that_fails_is_explained(tiny_cifar10: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "server")
    with pytest.raises(FileNotFoundError, match=r"No intact CIFAR-10 in .*new.* fetch http:"):
        ready(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(FileNotFoundError, match="No intact CIFAR-10"):
        ready(tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []


def test_an_archive_that_is_there_is_unpacked(tiny_cifar10: Path, tmp_path: Path) -> None:
    expected = ready(tiny_cifar10).fingerprint
    (archive,) = (tmp_path / "server").iterdir()
    (tmp_path / "new").mkdir()
    archive.rename(tmp_path / "new" / archive.name)
    assert ready(tmp_path / "new").fingerprint == expected


@pytest.mark.parametrize("first", [True, False])
def test_two_downloads_at_once_do_not_meet(
    tiny_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """The second runs while the first one's archive is on the way, or is unpacked."""
    expected = ready(tiny_cifar10).fingerprint
    root = tmp_path / "new"
    name = "_urlretrieve" if first else "extract_archive"
    original = getattr(torchvision.datasets.utils, name)
    found: list[str] = []

    def interrupted(*arguments: Any, **named: Any) -> None:
        monkeypatch.setattr(torchvision.datasets.utils, name, original)
        if first:
            Path(arguments[1]).write_bytes(b"the first bytes")
        found.append(ready(root, cache_dir=str(tmp_path / "other")).fingerprint)
        original(*arguments, **named)

    monkeypatch.setattr(torchvision.datasets.utils, name, interrupted)
    found.append(ready(root).fingerprint)
    assert found == [expected, expected]
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]


def test_an_archive_that_is_not_the_original_is_not_unpacked(
    tiny_cifar10: Path, tmp_path: Path
) -> None:
    (archive,) = (tmp_path / "server").iterdir()
    archive.write_bytes(archive.read_bytes()[:-20])
    with pytest.raises(FileNotFoundError, match=r"No intact CIFAR-10 in .*new"):
        ready(tmp_path / "new")
    assert not (tmp_path / "new" / "cifar-10-batches-py").exists()


def test_the_real_cifar10(real_cifar10: CIFAR10) -> None:
    assert (len(real_cifar10.train), len(real_cifar10.test)) == (50_000, 10_000)
    assert real_cifar10.train.labels.bincount().tolist() == [5_000] * 10
    assert real_cifar10.test.labels.bincount().tolist() == [1_000] * 10
    assert real_cifar10.train.labels[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, ...
    means = real_cifar10.train.images[::10].float().mean(dim=(0, 2, 3)) / 255
    np.testing.assert_allclose(means, real_cifar10.mean, atol=0.005)


def test_labels_of_cifar100_are_the_fine_ones(tiny_cifar100: Path, cache: Path) -> None:
    data = CIFAR100(str(tiny_cifar100 / "cifar-100-python"), download=False)
    data.prepare_data()
    data.setup()
    assert (len(data.train), len(data.test), data.num_classes) == (300, 200, 100)
    assert (data.mean, data.std) == ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
    assert data.class_names == sorted(set(data.class_names))
    for split, name in ((data.train, "train"), (data.test, "test")):
        batch = pickle.loads((tiny_cifar100 / "cifar-100-python" / name).read_bytes())
        assert split.labels.tolist() == batch["fine_labels"]
        np.testing.assert_array_equal(split.images, batch["data"].reshape(-1, 3, 32, 32))
    assert [folder.name.split("-")[0] for folder in cache.iterdir()] == ["cifar100"]


def test_cifar100_is_downloaded_or_asked_for(tiny_cifar100: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"No intact CIFAR-100 in .*cifar-100-python.tar.gz"
    ):
        CIFAR100(str(tmp_path / "new"), download=False).prepare_data()
    data = CIFAR100(str(tmp_path / "new"))
    data.prepare_data()
    data.setup()
    assert len(data.train) == 300
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cifar-100-python"]


def test_what_a_killed_download_left_is_removed(tiny_cifar10: Path, tmp_path: Path) -> None:
    expected = ready(tiny_cifar10).fingerprint
    (tmp_path / "new" / ".download-abc" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "new" / ".download-abc" / "cifar-10-python.tar.gz").write_bytes(b"half")
    assert ready(tmp_path / "new").fingerprint == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cifar-10-batches-py"]
