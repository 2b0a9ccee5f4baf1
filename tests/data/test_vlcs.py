"""VLCS: its two layouts and what is said when something is wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dam_lightning import VLCS
from dam_lightning.data import domain_folders
from tests.data.conftest import named, write_images

Ready = Callable[..., VLCS]
DASSL = {"CALTECH": "Caltech101", "LABELME": "LabelMe", "SUN": "SUN09", "PASCAL": "VOC2007"}
COUNTS = {"train": 3, "crossval": 1, "test": 2}


@pytest.fixture
def domain_bed(tmp_path: Path) -> Path:
    """A folder that holds DomainBed's VLCS with 10 images of each class of each domain."""
    write_images(
        tmp_path / "data" / "VLCS",
        (
            f"{domain}/{label}/{number:04d}.jpg"
            for domain in VLCS.domain_names
            for label in VLCS.class_names
            for number in range(10)
        ),
    )
    return tmp_path / "data"


@pytest.fixture(params=["numbers", "names"])
def dassl(tmp_path: Path, request: Any) -> Path:
    """A folder that holds Dassl's VLCS, with classes by number or name; full has all images."""
    labels = range(5) if request.param == "numbers" else VLCS.class_names
    parts = {**COUNTS, "full": sum(COUNTS.values())}
    write_images(
        tmp_path / "data" / "VLCS",
        (
            f"{domain}/{part}/{label}/im_{number}.jpg"
            for domain in DASSL
            for part, count in parts.items()
            for label in labels
            for number in range(count)
        ),
    )
    return tmp_path / "data"


@pytest.mark.parametrize("inner", ["", "VLCS"])
def test_given_parts_are_the_splits(dassl: Path, ready: Ready, inner: str) -> None:
    data = ready(VLCS, dassl / inner)
    assert data.class_names == ["bird", "car", "chair", "dog", "person"]
    assert data.domain_names == ["Caltech101", "LabelMe", "SUN09", "VOC2007"]
    assert (len(data.train), len(data.test)) == (4 * 5 * 4, 4 * 5 * 2)
    for split, parts in (("train", {"train", "crossval"}), ("test", {"test"})):
        seen = set()
        for path, label, domain in named(data, split):
            folder, part, inner_label, _ = path.split("/")
            assert DASSL[folder] == domain
            assert label in (
                inner_label,
                VLCS.class_names[int(inner_label)] if inner_label.isdigit() else "",
            )
            seen.add(part)
        assert seen == parts


def test_without_parts_three_tenths_of_every_cell_are_tested_on(
    domain_bed: Path, ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(domain_folders, "rank_zero_info", said.append)
    data = ready(VLCS, domain_bed)
    assert len(said) == 1
    assert "30% of each class of each domain" in said[0]
    train, test = named(data, "train"), named(data, "test")
    assert not train & test
    assert len(train | test) == 200
    for path, label, domain in train | test:
        assert path.startswith(f"{domain}/{label}/")
    for domain in VLCS.domain_names:
        for label in VLCS.class_names:
            assert sum(found[1:] == (label, domain) for found in test) == 3
    assert named(ready(VLCS, domain_bed, seed=5), "test") == test
    assert named(ready(VLCS, domain_bed, split_seed=1), "test") != test


def test_a_missing_part_is_named(dassl: Path, ready: Ready) -> None:
    shutil.rmtree(dassl / "VLCS" / "SUN" / "crossval")
    with pytest.raises(
        FileNotFoundError,
        match=r"VLCS/SUN has no folder crossval: other domains .* train, crossval, test\. Give as",
    ):
        ready(VLCS, dassl)


def test_a_class_may_be_missing_in_a_part(dassl: Path, ready: Ready) -> None:
    """The smallest cell has 20 images, of which 7 % are in crossval."""
    folders = sorted((dassl / "VLCS" / "SUN" / "crossval").iterdir())
    shutil.rmtree(folders[0])
    assert len(ready(VLCS, dassl).train) == 4 * 5 * 4 - 1
    shutil.rmtree(dassl / "VLCS" / "SUN" / "train" / folders[0].name)
    shutil.rmtree(dassl / "VLCS" / "SUN" / "test" / folders[0].name)
    with pytest.raises(FileNotFoundError, match=r"No images of bird in .*VLCS/SUN\. VLCS has"):
        ready(VLCS, dassl)


def test_a_missing_dataset_is_explained(tmp_path: Path, ready: Ready) -> None:
    with pytest.raises(FileNotFoundError) as error:
        ready(VLCS, tmp_path / "nowhere")
    for part in ("No VLCS in", "nowhere/VLCS", "<class>/<image> (DomainBed)", "drive.google.com"):
        assert part in str(error.value)


def test_a_missing_domain_is_named(domain_bed: Path, ready: Ready) -> None:
    shutil.rmtree(domain_bed / "VLCS" / "VOC2007")
    with pytest.raises(
        FileNotFoundError, match=r"no folder of the domain VOC2007 \(but of Caltech"
    ):
        ready(VLCS, domain_bed)


def test_two_layouts_in_one_folder_are_refused(domain_bed: Path, ready: Ready) -> None:
    (domain_bed / "VLCS" / "SUN").mkdir()
    with pytest.raises(ValueError, match=r"two folders of SUN09, SUN and SUN09: remove one"):
        ready(VLCS, domain_bed)
