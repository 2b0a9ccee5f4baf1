"""PACS: its layouts, its lists and what is said when something is wrong."""

import multiprocessing
import os
import shutil
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch

from dam_lightning.data import PACS, domain_folders, folders
from dam_lightning.data import pacs as pacs_module
from dam_lightning.data.split_cache import read_splits
from tests.conftest import PER_CELL
from tests.reference.fourier import pseudo_domains

MakePACS = Callable[..., PACS]
CELLS = [(domain, label) for domain in PACS.domain_names for label in PACS.class_names]


def ready(data: PACS) -> PACS:
    data.prepare_data()
    data.setup()
    return data


def check_authors_split(data: PACS) -> None:
    """The last two images of each cell are tested on; labels are those of the folders."""
    assert len(data.train) == len(CELLS) * (PER_CELL - 2)
    assert len(data.test) == len(CELLS) * 2
    for split, numbers in ((data.train, range(PER_CELL - 2)), (data.test, (8, 9))):
        expected = {f"{d}/{c}/pic_{n:03d}.png" for d, c in CELLS for n in numbers}
        assert set(split.paths) == expected
        for path, label, domain in zip(
            split.paths, split.labels.tolist(), split.domains.tolist(), strict=True
        ):
            domain_name, class_name, _ = path.split("/")
            assert data.class_names[label] == class_name
            assert data.domain_names[domain] == domain_name


def rearrange(root: Path, layout: str) -> Path:
    """Move a DomainBed tree to another layout; returns the dataset's folder."""
    if layout == "domainbed":
        return root / "PACS"
    folder = root / ("pacs" if layout == "dassl" else "authors")
    images, lists = ("images", "splits") if layout == "dassl" else ("kfold", "pacs_label")
    folder.mkdir()
    shutil.move(root / "PACS" / "splits", folder / lists)
    shutil.move(root / "PACS", folder / images)
    return folder


@pytest.mark.parametrize("layout", ["domainbed", "dassl", "authors"])
def test_every_layout_is_read(tiny_pacs: Path, pacs: MakePACS, layout: str) -> None:
    folder = rearrange(tiny_pacs, layout)
    data = ready(pacs(folder))
    check_authors_split(data)
    assert data.class_names == ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
    assert data.domain_names == ["art_painting", "cartoon", "photo", "sketch"]
    assert data.image_shape == (3, 8, 8)
    assert data.num_classes == 7
    # The folder that holds the dataset does too, where the dataset's folder has its usual name, and
    # so does the folder of the domains itself.
    inner = {"domainbed": ".", "dassl": "images", "authors": "kfold"}[layout]
    for root in [folder / inner] + ([tiny_pacs] if layout != "authors" else []):
        assert ready(pacs(root)).fingerprint == data.fingerprint


def test_the_images_are_those_of_the_files(tiny_pacs: Path, pacs: MakePACS) -> None:
    from PIL import Image

    data = ready(pacs(tiny_pacs))
    for position in (0, 100, 223):
        with Image.open(tiny_pacs / "PACS" / data.train.paths[position]) as image:
            pixels = torch.tensor(list(image.convert("RGB").tobytes()), dtype=torch.uint8)
        assert torch.equal(data.train.images[position].permute(1, 2, 0).flatten(), pixels)
    assert ready(pacs(tiny_pacs, image_size=4)).image_shape == (3, 4, 4)


def test_labels_come_from_folders_and_images_count_once(tiny_pacs: Path, pacs: MakePACS) -> None:
    listed = tiny_pacs / "PACS" / "splits" / "photo_crossval_kfold.txt"
    lines = listed.read_text().splitlines()
    lines[0] = lines[0].rsplit(" ", 1)[0] + " 0"
    lines.insert(3, lines[1])
    listed.write_text("\r\n".join(["", *lines]) + "\r\n\r\n")
    check_authors_split(ready(pacs(tiny_pacs)))


def test_repeated_lines_and_unlisted_images_are_counted(
    tiny_pacs: Path, pacs: MakePACS, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tiny_pacs / "PACS" / "splits" / "photo_crossval_kfold.txt"
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join([*lines[1:], lines[1], lines[2]]))
    said: list[str] = []
    monkeypatch.setattr(domain_folders, "rank_zero_info", said.append)
    data = ready(pacs(tiny_pacs))
    assert len(data.test) == len(CELLS) * 2 - 1
    assert len(said) == 2
    assert said[0].startswith(
        f"2 lines of the lists in {listed.parent}, such as that of photo/dog/"
    )
    assert "1 images in" in said[1]
    assert "such as photo/dog/pic_008.png, are in none of the lists" in said[1]


def test_the_test_lists_are_not_read(tiny_pacs: Path, pacs: MakePACS) -> None:
    for domain in PACS.domain_names:
        (tiny_pacs / "PACS" / "splits" / f"{domain}_test_kfold.txt").unlink()
    check_authors_split(ready(pacs(tiny_pacs)))


def test_without_lists_a_tenth_of_every_cell_is_tested_on(
    tiny_pacs: Path, pacs: MakePACS, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(tiny_pacs / "PACS" / "splits")
    said: list[str] = []
    monkeypatch.setattr(domain_folders, "rank_zero_info", said.append)
    data = ready(pacs(tiny_pacs))
    ready(data)
    assert len(said) == 1
    assert "10% of each class of each domain" in said[0]
    assert "split_seed=0" in said[0]
    assert not set(data.train.paths) & set(data.test.paths)
    assert len(set(data.train.paths) | set(data.test.paths)) == len(CELLS) * PER_CELL
    cells = [tuple(path.split("/")[:2]) for path in data.test.paths]
    assert sorted(cells) == sorted(CELLS)  # one of ten in each
    again, other = pacs(tiny_pacs, seed=5), pacs(tiny_pacs, split_seed=1)
    assert ready(again).test.paths == data.test.paths
    assert ready(other).test.paths != data.test.paths


def test_a_missing_dataset_is_explained(tmp_path: Path, pacs: MakePACS) -> None:
    with pytest.raises(FileNotFoundError) as error:
        pacs(tmp_path / "nowhere").prepare_data()
    message = str(error.value)
    assert f"No PACS in {tmp_path / 'nowhere'}" in message
    for folder in ("nowhere/PACS", "nowhere/pacs/images", "nowhere/kfold"):
        assert str(tmp_path / folder) in message
    assert "PACS/<domain>/<class>/<image>" in message


def test_a_missing_domain_is_named(tiny_pacs: Path, pacs: MakePACS) -> None:
    shutil.move(tiny_pacs / "PACS" / "sketch", tiny_pacs / "PACS" / "sketches")
    with pytest.raises(
        FileNotFoundError,
        match=r"no folder of the domain sketch \(but of art_painting, cartoon, photo\)\. Give as",
    ):
        pacs(tiny_pacs).prepare_data()


def test_a_domain_that_is_there_twice_is_refused(tiny_pacs: Path, pacs: MakePACS) -> None:
    shutil.copytree(tiny_pacs / "PACS" / "sketch", tiny_pacs / "PACS" / "Sketch")
    with pytest.raises(ValueError, match=r"two folders of sketch, Sketch and sketch: remove one"):
        pacs(tiny_pacs).prepare_data()


def test_folders_may_be_spelt_differently(tiny_pacs: Path, pacs: MakePACS) -> None:
    """Lists name them as the authors do."""
    (tiny_pacs / "PACS" / "art_painting").rename(tiny_pacs / "PACS" / "Art Painting")
    (tiny_pacs / "PACS" / "photo" / "dog").rename(tiny_pacs / "PACS" / "photo" / "Dog")
    data = ready(pacs(tiny_pacs))
    assert data.domain_names == ["art_painting", "cartoon", "photo", "sketch"]
    assert (len(data.train), len(data.test)) == (len(CELLS) * (PER_CELL - 2), len(CELLS) * 2)
    assert "Art Painting/dog/pic_000.png" in data.train.paths
    assert "photo/Dog/pic_009.png" in data.test.paths


def test_class_sets_that_differ_are_named(tiny_pacs: Path, pacs: MakePACS) -> None:
    for path in (tiny_pacs / "PACS" / "photo" / "guitar").iterdir():
        path.unlink()
    shutil.rmtree(tiny_pacs / "PACS" / "sketch" / "dog")
    shutil.rmtree(tiny_pacs / "PACS" / "sketch" / "horse")
    with pytest.raises(
        FileNotFoundError,
        match=r"No images of guitar in .*PACS/photo; of dog, horse in .*PACS/sketch\. .* unpack it",
    ):
        pacs(tiny_pacs).prepare_data()


def test_a_folder_of_no_class_is_refused(tiny_pacs: Path, pacs: MakePACS) -> None:
    (tiny_pacs / "PACS" / "photo" / "cat").mkdir()
    check_authors_split(ready(pacs(tiny_pacs)))
    shutil.copy(
        tiny_pacs / "PACS" / "photo" / "dog" / "pic_000.png", tiny_pacs / "PACS" / "photo" / "cat"
    )
    with pytest.raises(ValueError, match=r"photo/cat is of no class of PACS \(dog, elephant"):
        pacs(tiny_pacs).prepare_data()


def test_a_listed_image_that_is_missing_is_named(tiny_pacs: Path, pacs: MakePACS) -> None:
    (tiny_pacs / "PACS" / "cartoon" / "dog" / "pic_009.png").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"cartoon/dog/pic_009\.png is listed in .*cartoon_crossval_kfold\.txt.*Unpack PACS",
    ):
        pacs(tiny_pacs).prepare_data()


def test_a_missing_list_is_named(tiny_pacs: Path, pacs: MakePACS) -> None:
    (tiny_pacs / "PACS" / "splits" / "photo_train_kfold.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"but not photo_train_kfold\.txt\. Add these"):
        pacs(tiny_pacs).prepare_data()


def test_lists_that_overlap_are_refused(tiny_pacs: Path, pacs: MakePACS) -> None:
    lists = tiny_pacs / "PACS" / "splits"
    with (lists / "photo_train_kfold.txt").open("a") as listed:
        listed.write("photo/dog/pic_009.png 1\n")
    with pytest.raises(ValueError, match=r"1 images, such as photo/dog/pic_009\.png, are in both"):
        pacs(tiny_pacs).prepare_data()


def test_a_list_of_another_domain_is_refused(tiny_pacs: Path, pacs: MakePACS) -> None:
    lists = tiny_pacs / "PACS" / "splits"
    shutil.copy(lists / "photo_train_kfold.txt", lists / "sketch_train_kfold.txt")
    with pytest.raises(ValueError, match=r"sketch_train_kfold.*which is not in the domain sketch"):
        pacs(tiny_pacs).prepare_data()


def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    builds: list[Path] = []
    build_splits = folders.build_splits
    monkeypatch.setattr(
        folders,
        "build_splits",
        lambda folder, root, *rest: builds.append(root) or build_splits(folder, root, *rest),
    )
    return builds


def test_images_are_decoded_once(
    tiny_pacs: Path, pacs: MakePACS, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = count_builds(monkeypatch)
    first = ready(pacs(tiny_pacs))
    assert len(builds) == 1
    second = ready(pacs(tiny_pacs))
    assert len(builds) == 1
    assert second.fingerprint == first.fingerprint
    for name in ("train", "test"):
        old, new = getattr(first, name), getattr(second, name)
        assert torch.equal(new.images, old.images)
        assert torch.equal(new.labels, old.labels)
        assert torch.equal(new.domains, old.domains)
        assert new.paths == old.paths


@pytest.mark.parametrize("change", ["size", "time", "list", "image_size"])
def test_a_changed_dataset_is_decoded_again(
    tiny_pacs: Path, pacs: MakePACS, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    ready(pacs(tiny_pacs))
    builds = count_builds(monkeypatch)
    image = tiny_pacs / "PACS" / "photo" / "dog" / "pic_000.png"
    status = image.stat()
    if change == "size":
        image.write_bytes(image.read_bytes() + b"\0")
        os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    elif change == "list":
        listed = tiny_pacs / "PACS" / "splits" / "photo_train_kfold.txt"
        listed.write_text("\n".join(listed.read_text().splitlines()[:-1]))
    ready(pacs(tiny_pacs, image_size=4 if change == "image_size" else 8))
    assert len(builds) == 1


@pytest.mark.parametrize("damaged", ["index.safetensors", "train.images", "test.images"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_cache_is_built_again(
    tiny_pacs: Path, pacs: MakePACS, tmp_path: Path, damage: str, damaged: str
) -> None:
    first = ready(pacs(tiny_pacs))
    (folder,) = (tmp_path / "cache").iterdir()
    file = folder / damaged
    intact = file.read_bytes()
    file.unlink()  # the first module still maps the old file
    file.write_bytes(
        {"truncated": intact[:-100], "garbage": b"x" * len(intact), "empty": b""}[damage]
    )
    second = ready(pacs(tiny_pacs))
    assert torch.equal(second.train.images, first.train.images)
    assert read_splits(folder) is not None


def set_up_in_process(root: str, cache: str, barrier: Barrier, results: str, rank: int) -> None:
    data = PACS(root, image_size=8, cache_dir=cache)
    barrier.wait(60)
    ready(data)
    torch.save([data.fingerprint, data.train.images.clone()], Path(results) / str(rank))


def test_two_processes_may_build_the_cache_at_once(
    tiny_pacs: Path, pacs: MakePACS, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    (tmp_path / "results").mkdir()
    processes = [
        context.Process(
            target=set_up_in_process,
            args=(
                str(tiny_pacs),
                str(tmp_path / "cache"),
                barrier,
                str(tmp_path / "results"),
                rank,
            ),
        )
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    data = ready(pacs(tiny_pacs))
    for rank in range(2):
        fingerprint, images = torch.load(tmp_path / "results" / str(rank))
        assert fingerprint == data.fingerprint
        assert torch.equal(images, data.train.images)


def test_the_real_pacs_has_the_published_sizes(real_pacs: PACS) -> None:
    assert (len(real_pacs.train), len(real_pacs.test)) == (8977, 1014)
    assert not set(real_pacs.train.paths) & set(real_pacs.test.paths)
    assert len(set(real_pacs.train.paths) | set(real_pacs.test.paths)) == 9991
    assert real_pacs.train.domains.bincount().tolist() == [1840, 2107, 1499, 3531]
    assert real_pacs.test.domains.bincount().tolist() == [208, 237, 171, 398]
    assert real_pacs.train.labels.bincount().tolist() == [1555, 1486, 1407, 1000, 1384, 846, 1299]
    for split in (real_pacs.train, real_pacs.test):
        for path, label, domain in zip(
            split.paths, split.labels.tolist(), split.domains.tolist(), strict=True
        ):
            start = f"{real_pacs.domain_names[domain]}/{real_pacs.class_names[label]}/"
            assert path.startswith(start)


@pytest.mark.parametrize("num_domains", [4, 5])
def test_pseudo_domains_of_the_real_pacs(real_pacs: PACS, num_domains: int) -> None:
    real_pacs.setup_domains(num_domains)
    _, expected = pseudo_domains(real_pacs.train.images.numpy(), num_domains)
    assert real_pacs.pseudo_domains is not None
    assert real_pacs.pseudo_domains.tolist() == expected


def test_the_real_pacs_splits_into_tenths_without_lists(
    real_pacs: PACS, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = PACS(str(real_pacs.root))
    monkeypatch.setattr(pacs_module, "find_lists", lambda *_: None)
    listing = data.list_files()
    train, test = ({file.path for file in files} for files in (listing.train, listing.test))
    assert not train & test
    assert len(train | test) == 9991
    assert abs(len(test) - 999) <= len(CELLS) / 2
    for domain, label in CELLS:
        cell = f"{domain}/{label}/"
        tested, kept = (sum(path.startswith(cell) for path in part) for part in (test, train))
        assert abs(tested - 0.1 * (tested + kept)) <= 0.5
