"""Office-Home: its layouts and what is said when something is wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dam_lightning import OfficeHome
from dam_lightning.data import domain_folders
from tests.data.conftest import named, write_images

Ready = Callable[..., OfficeHome]
SOME = ("Alarm_Clock", "TV", "Table", "ToothBrush")


@pytest.fixture(autouse=True)
def few_classes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "every_class" not in request.fixturenames:
        monkeypatch.setattr(OfficeHome, "class_names", SOME)


@pytest.fixture
def every_class() -> None:
    """All 65 in place of a few."""


def write(folder: Path, real_world: str = "Real World", count: int = 10) -> None:
    """The authors' layout, with the lists that come with it."""
    write_images(
        folder,
        (
            f"{domain}/{label}/{number:05d}.jpg"
            for domain in ("Art", "Clipart", "Product", real_world)
            for label in OfficeHome.class_names
            for number in range(count)
        ),
    )
    (folder / "imagelist.txt").write_text("Art/TV/00000.jpg\n")


@pytest.mark.parametrize("folder", ["office_home", "OfficeHomeDataset_10072016"])
@pytest.mark.parametrize("real_world", ["Real World", "RealWorld", "Real_World", "real_world"])
def test_a_tenth_of_every_cell_is_tested_on(
    tmp_path: Path, ready: Ready, monkeypatch: pytest.MonkeyPatch, folder: str, real_world: str
) -> None:
    write(tmp_path / folder, real_world)
    said: list[str] = []
    monkeypatch.setattr(domain_folders, "rank_zero_info", said.append)
    data = ready(OfficeHome, tmp_path)
    assert data.domain_names == ["Art", "Clipart", "Product", "Real World"]
    assert data.class_names == list(SOME)
    assert len(said) == 1
    assert "10% of each class of each domain" in said[0]
    train, test = named(data, "train"), named(data, "test")
    assert len(train | test) == 160
    assert len(train & test) == 0
    assert len({found[1:] for found in test}) == len(test) == 16
    for path, label, domain in train | test:
        assert path.startswith(f"{real_world if domain == 'Real World' else domain}/{label}/")


def test_the_parts_of_dassl_are_the_splits(tmp_path: Path, ready: Ready) -> None:
    """With classes in small letters, whose alphabetical order is another."""
    write_images(
        tmp_path / "office_home_dg",
        (
            f"{domain}/{part}/{label.lower()}/{number}.jpg"
            for domain in ("art", "clipart", "product", "real_world")
            for part, count in (("train", 4), ("val", 1))
            for label in SOME
            for number in range(count)
        ),
    )
    data = ready(OfficeHome, tmp_path)
    assert data.domain_names == ["Art", "Clipart", "Product", "Real World"]
    assert data.class_names == list(SOME)
    for split, part, count in (("train", "train", 64), ("test", "val", 16)):
        found = named(data, split)
        assert len(found) == count
        for path, label, domain in found:
            start = f"{domain.lower().replace(' ', '_')}/{part}/{label.lower()}/"
            assert path.startswith(start)
    shutil.rmtree(tmp_path / "office_home_dg" / "art" / "val")
    with pytest.raises(FileNotFoundError, match=r"office_home_dg/art has no folder val: other"):
        ready(OfficeHome, tmp_path)


def test_all_classes_are_known(tmp_path: Path, ready: Ready, every_class: None) -> None:
    assert len(OfficeHome.class_names) == 65
    assert list(OfficeHome.class_names) == sorted(set(OfficeHome.class_names))
    write(tmp_path / "office_home", count=2)
    data = ready(OfficeHome, tmp_path)
    assert (data.num_classes, len(data.train), len(data.test)) == (65, 260, 260)
    (tmp_path / "office_home" / "Art" / "TV").rename(tmp_path / "office_home" / "Art" / "Screen")
    with pytest.raises(
        ValueError, match=r"Art/Screen is of no class of Office-Home \(Alarm_Clock,"
    ):
        ready(OfficeHome, tmp_path)


def test_class_sets_that_differ_are_named(tmp_path: Path, ready: Ready) -> None:
    write(tmp_path / "office_home", count=2)
    shutil.rmtree(tmp_path / "office_home" / "Real World" / "TV")
    with pytest.raises(FileNotFoundError, match=r"No images of TV in .*office_home/Real World\. "):
        ready(OfficeHome, tmp_path)


def test_a_missing_dataset_or_domain_is_explained(tmp_path: Path, ready: Ready) -> None:
    with pytest.raises(FileNotFoundError) as error:
        ready(OfficeHome, tmp_path)
    for part in ("No Office-Home in", "office_home_dg", "OfficeHomeDataset_10072016", "http://"):
        assert part in str(error.value)
    write(tmp_path / "office_home", real_world="World", count=2)
    with pytest.raises(
        FileNotFoundError, match=r"no folder of the domain Real World \(but of Art,"
    ):
        ready(OfficeHome, tmp_path)
