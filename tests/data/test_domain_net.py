"""DomainNet: its layouts, lists and duplicates, and how it is downloaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dam_lightning import DomainNet
from dam_lightning.data import domain_folders, domain_net
from tests.data.conftest import Server, named, write_images, write_zip

Ready = Callable[..., DomainNet]
CLASSES = ("The_Eiffel_Tower", "airplane", "t-shirt")
PER_CELL = 5
CELLS = [(domain, label) for domain in DomainNet.domain_names for label in CLASSES]


@pytest.fixture(autouse=True)
def few_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DomainNet, "known_classes", len(CLASSES))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for module in (domain_folders, domain_net):
        monkeypatch.setattr(module, "rank_zero_info", lines.append)
    return lines


def image(domain: str, label: str, number: int) -> str:
    """The path of an image, named as the authors do."""
    return f"{domain}/{label}/{domain}_{CLASSES.index(label) + 1:03d}_{number:06d}.jpg"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The folder of a DomainNet of 5 images of each class of each domain."""
    folder = tmp_path / "data" / "domain_net"
    write_images(folder, (image(*cell, number) for cell in CELLS for number in range(PER_CELL)))
    return folder


def write_lists(folder: Path) -> None:
    """The authors' lists: of each cell images 0 to 2 train, 3 tests, and 4 is a duplicate.

    Painting has no t-shirts in its training list, and labels are not in the order of the folders.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"airplane": 0, "t-shirt": 1, "The_Eiffel_Tower": 2}
    for domain in DomainNet.domain_names:
        for part, of_it in (("train", range(3)), ("test", [3])):
            lines = [
                f"{image(domain, label, number)} {numbers[label]}\n"
                for label in sorted(numbers, key=numbers.__getitem__)
                for number in of_it
                if (domain, label, part) != ("painting", "t-shirt", "train")
            ]
            (folder / f"{domain}_{part}.txt").write_text("".join(lines))


def expected(split: str) -> set[tuple[str, str, str]]:
    return {
        (image(domain, label, number), label, domain)
        for domain, label in CELLS
        for number in (range(3) if split == "train" else [3])
        if (domain, label, split) != ("painting", "t-shirt", "train")
    }


@pytest.mark.parametrize("place", [".", "splits", "txt", "..", "../splits"])
def test_the_authors_lists_are_used(tiny: Path, ready: Ready, said: list[str], place: str) -> None:
    write_lists(tiny / place)
    data = ready(DomainNet, tiny.parent)
    assert data.class_names == list(CLASSES)
    assert data.domain_names == list(DomainNet.domain_names)
    assert named(data, "train") == expected("train")
    assert named(data, "test") == expected("test")
    # One of each cell, and three t-shirts.
    assert len(said) == 1
    assert said[0].startswith(f"21 images in {tiny}")


@pytest.mark.parametrize("name", ["DomainNet", "domainnet"])
def test_the_folder_has_several_names(tiny: Path, ready: Ready, name: str) -> None:
    whole = ready(DomainNet, tiny)
    tiny.rename(tiny.parent / name)
    other = ready(DomainNet, tiny.parent)
    assert named(other, "test") == named(whole, "test")
    assert other.fingerprint == whole.fingerprint


def test_without_lists_a_fifth_of_every_cell_is_tested_on(
    tiny: Path, ready: Ready, said: list[str]
) -> None:
    data = ready(DomainNet, tiny)
    train, test = named(data, "train"), named(data, "test")
    assert not train & test
    assert len(train | test) == len(CELLS) * PER_CELL
    assert sorted(found[:0:-1] for found in test) == sorted(CELLS)
    assert len(said) == 1
    assert "No lists of clipart_train.txt" in said[0]
    assert "20% of each class of each domain" in said[0]
    assert "duplicates" not in said[0]


def test_duplicates_are_left_out_where_their_list_is_there(
    tiny: Path, ready: Ready, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain_net, "_CLEANED", len(CELLS) * 4)
    ready(DomainNet, tiny)
    assert "90 images, 18 more than without duplicates (either the lists or" in said[0]
    said.clear()
    duplicates = tiny / "domain_net_duplicates.txt"
    gone = "real/airplane/real_002_999999.jpg"  # DomainBed deletes them
    lines = [image(*cell, 4) for cell in CELLS]
    duplicates.write_text("\n".join([*lines, gone]))
    data = ready(DomainNet, tiny)
    found = named(data, "train") | named(data, "test")
    assert {path for path, *_ in found} == {image(*cell, n) for cell in CELLS for n in range(4)}
    assert said[0] == "18 images that domain_net_duplicates.txt lists are left out."
    assert "more than without" not in said[1]
    # They may be in the lists too.
    write_lists(tiny / "splits")
    duplicates.write_text("\n".join([image("real", "airplane", 0), gone]))
    assert named(ready(DomainNet, tiny), "train") == {
        found for found in expected("train") if found[0] != image("real", "airplane", 0)
    }
    duplicates.write_text("reality/airplane/real_002_000001.jpg\n")
    with pytest.raises(
        ValueError, match=r"duplicates\.txt lists reality/.*, which is in no domain"
    ):
        ready(DomainNet, tiny)


def test_a_listed_image_that_is_missing_is_named(tiny: Path, ready: Ready) -> None:
    write_lists(tiny)
    for number in (1, 2):
        (tiny / image("sketch", "airplane", number)).unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"sketch_002_000001\.jpg is listed in .*sketch_train\.txt but .* \(2 such lines\)",
    ):
        ready(DomainNet, tiny)


def test_a_missing_list_is_named(tiny: Path, ready: Ready) -> None:
    write_lists(tiny)
    (tiny / "real_test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"but not real_test\.txt\. Add these, or remove"):
        ready(DomainNet, tiny)


def test_lists_that_overlap_are_refused(tiny: Path, ready: Ready) -> None:
    write_lists(tiny)
    shutil.copy(tiny / "real_train.txt", tiny / "real_test.txt")
    with pytest.raises(
        ValueError, match=r"9 images, such as real/.*, are in both the training and"
    ):
        ready(DomainNet, tiny)


def test_a_list_that_is_no_text_is_named(tiny: Path, ready: Ready) -> None:
    write_lists(tiny)
    (tiny / "real_train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"real_train\.txt is no text in UTF-8 .*download it anew"):
        ready(DomainNet, tiny)


def test_class_sets_that_differ_are_named(tiny: Path, ready: Ready) -> None:
    shutil.rmtree(tiny / "painting" / "t-shirt")
    for folder in (tiny / "real" / "empty", tiny / "sketch" / ".hidden"):
        folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"No images of t-shirt in .*painting\. DomainNet"):
        ready(DomainNet, tiny)


def test_empty_folders_are_of_no_class(tiny: Path, ready: Ready) -> None:
    (tiny / "real" / "Empty").mkdir()
    data = ready(DomainNet, tiny)
    assert data.class_names == list(CLASSES)
    assert all(path.startswith(f"{d}/{c}/") for path, c, d in named(data, "train"))


def test_part_of_the_classes_is_refused(
    tiny: Path, ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"has 3 classes \(The_Eiffel.*\), but DomainNet has 345"):
        ready(DomainNet, tiny)


def test_a_missing_dataset_or_domain_is_explained(tiny: Path, ready: Ready) -> None:
    shutil.rmtree(tiny / "quickdraw")
    with pytest.raises(
        FileNotFoundError, match=r"no folder of the domain quickdraw .*download: true .*ImageFolder"
    ):
        ready(DomainNet, tiny)
    with pytest.raises(FileNotFoundError, match=r"No DomainNet in .*nowhere\. .*download: true"):
        ready(DomainNet, tiny / "nowhere")
    assert not (tiny / "nowhere").exists()


@pytest.fixture
def hosted(tiny: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Has the archive of each domain, and the lists."""
    write_lists(server.folder)
    for domain in DomainNet.domain_names:
        write_zip(server.folder / f"{domain}.zip", tiny / domain)
    archives = {domain: server.remote(f"{domain}.zip") for domain in DomainNet.domain_names}
    monkeypatch.setattr(DomainNet, "archives", archives)
    lists = {name: server.remote(name) for name in DomainNet.lists}
    monkeypatch.setattr(DomainNet, "lists", lists)
    return server


@pytest.mark.parametrize("named_so", [False, True])
def test_it_is_downloaded_once(
    hosted: Server, tmp_path: Path, ready: Ready, named_so: bool
) -> None:
    root = tmp_path / ("domain_net" if named_so else "new")
    data = ready(DomainNet, root, download=True)
    assert named(data, "train") == expected("train")
    assert named(data, "test") == expected("test")
    home = root if named_so else root / "domain_net"
    assert sorted(path.name for path in home.iterdir()) == [
        *sorted(DomainNet.domain_names),
        "splits",
    ]
    assert sorted(path.name for path in (home / "splits").iterdir()) == sorted(DomainNet.lists)
    assert len(hosted.requests) == 18
    ready(DomainNet, root, download=True)
    assert len(hosted.requests) == 18


def test_a_download_goes_on_where_it_was_interrupted(
    hosted: Server, tmp_path: Path, ready: Ready
) -> None:
    hosted.cut = [10**9, 1000, 0]
    with pytest.raises(OSError, match=r"infograph\.zip cannot be downloaded .*1000 of"):
        ready(DomainNet, tmp_path / "new", download=True)
    home = tmp_path / "new" / "domain_net"
    assert sorted(path.name for path in home.iterdir()) == [".infograph.zip.part", "clipart"]
    with pytest.raises(FileNotFoundError, match=r"no folder of the domain infograph, painting"):
        ready(DomainNet, tmp_path / "new")
    hosted.requests.clear()
    assert named(ready(DomainNet, tmp_path / "new", download=True), "train") == expected("train")
    assert hosted.requests[0] == ("infograph.zip", "bytes=1000-")
    assert len(hosted.requests) == 17


def test_only_what_is_missing_is_downloaded(hosted: Server, tiny: Path, ready: Ready) -> None:
    shutil.rmtree(tiny / "real")
    write_lists(tiny)
    ready(DomainNet, tiny.parent, download=True)
    assert hosted.requests == [("real.zip", None)]
