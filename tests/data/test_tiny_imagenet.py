"""Tiny ImageNet: flat and sorted validation folders, annotations, downloads."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dam_lightning import TinyImageNet
from dam_lightning.data import tiny_imagenet
from tests.data.conftest import Server, named, write_images, write_zip

Ready = Callable[..., TinyImageNet]
WNIDS = ("n01443537", "n02124075", "n04067472")
ANNOTATED = {f"val_{number}.JPEG": WNIDS[number % 3] for number in (4, 0, 1, 2, 3, 5)}


@pytest.fixture(autouse=True)
def few_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinyImageNet, "known_classes", len(WNIDS))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(tiny_imagenet, "rank_zero_info", lines.append)
    return lines


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny-imagenet-200 of 4 training and 2 validation images of each class."""
    folder = tmp_path / "data" / "tiny-imagenet-200"
    write_images(
        folder, (f"train/{wnid}/images/{wnid}_{n}.JPEG" for wnid in WNIDS for n in range(4))
    )
    write_images(folder, (f"val/images/{name}" for name in sorted(ANNOTATED)))
    write_images(folder, (f"test/images/test_{n}.JPEG" for n in range(3)))
    for wnid in WNIDS:
        boxes = "".join(f"{wnid}_{n}.JPEG\t0\t10\t63\t58\n" for n in range(4))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
    (folder / "wnids.txt").write_text("\n".join(reversed(WNIDS)))
    (folder / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\n")
    annotate(folder, [f"{name}\t{wnid}" for name, wnid in ANNOTATED.items()])
    return folder


def annotate(folder: Path, lines: list[str]) -> None:
    text = "".join(f"{line}\t0\t32\t44\t62\n" for line in lines)
    (folder / "val" / "val_annotations.txt").write_text(text)


def sort_validation(folder: Path, layout: str) -> None:
    for name, wnid in ANNOTATED.items():
        place = folder / "val" / layout.format(wnid)
        place.mkdir(parents=True, exist_ok=True)
        (folder / "val" / "images" / name).rename(place / name)


@pytest.mark.parametrize("inner", ["", "tiny-imagenet-200"])
def test_the_official_layout_is_read(tiny: Path, ready: Ready, inner: str) -> None:
    data = ready(TinyImageNet, tiny.parent / inner, download=False)
    assert data.class_names == list(WNIDS)
    assert data.domain_names == ["all"]
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert named(data, "train") == {
        (f"train/{wnid}/images/{wnid}_{n}.JPEG", wnid, "all") for wnid in WNIDS for n in range(4)
    }
    assert named(data, "test") == {
        (f"val/images/{name}", wnid, "all") for name, wnid in ANNOTATED.items()
    }


@pytest.mark.parametrize("layout", ["{}", "{}/images", "images/{}"])
def test_validation_images_may_be_sorted(tiny: Path, ready: Ready, layout: str) -> None:
    sort_validation(tiny, layout)
    for name in ("val/val_annotations.txt", "wnids.txt"):
        (tiny / name).unlink()
    data = ready(TinyImageNet, tiny)
    assert named(data, "test") == {
        (f"val/{layout.format(wnid)}/{name}", wnid, "all") for name, wnid in ANNOTATED.items()
    }


def test_training_images_may_lie_in_the_classes_folder(tiny: Path, ready: Ready) -> None:
    for wnid in WNIDS:
        for file in (tiny / "train" / wnid / "images").iterdir():
            file.rename(tiny / "train" / wnid / file.name)
    assert len(ready(TinyImageNet, tiny).train) == 12


def test_grey_images_become_colour(tiny: Path, ready: Ready) -> None:
    file = tiny / "train" / WNIDS[1] / "images" / f"{WNIDS[1]}_2.JPEG"
    Image.open(file).convert("L").save(file)
    data = ready(TinyImageNet, tiny)
    image = data.train.images[data.train.paths.index(file.relative_to(tiny).as_posix())]
    assert image.shape == (3, 8, 8)
    assert (image == image[0]).all()
    assert image.float().std() > 1


def test_annotations_are_counted_and_checked(tiny: Path, ready: Ready, said: list[str]) -> None:
    lines = [f"{name}\t{wnid}" for name, wnid in ANNOTATED.items()]
    annotate(tiny, [*lines[2:], lines[2]])
    assert len(ready(TinyImageNet, tiny).test) == 4
    assert len(said) == 2
    assert said[0].startswith("1 lines of ")
    assert said[1].startswith(f"2 images in {tiny / 'val' / 'images'} are not listed in")
    annotate(tiny, [*lines, f"val_0.JPEG\t{WNIDS[2]}"])
    with pytest.raises(
        ValueError, match=r"val_annotations\.txt lists val_0\.JPEG with two classes"
    ):
        ready(TinyImageNet, tiny)
    annotate(tiny, [*lines, f"val_9.JPEG\t{WNIDS[2]}"])
    with pytest.raises(FileNotFoundError, match=r"val_9\.JPEG is listed in .* but is not there"):
        ready(TinyImageNet, tiny)
    annotate(tiny, [*lines[1:], "val_4.JPEG\tn00000001"])
    with pytest.raises(ValueError, match=r"says that val_4\.JPEG is of the class 'n00000001'"):
        ready(TinyImageNet, tiny)
    (tiny / "val" / "val_annotations.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no .*val_annotations\.txt.* sort them"):
        ready(TinyImageNet, tiny)


def test_half_sorted_validation_images_are_refused(tiny: Path, ready: Ready) -> None:
    sort_validation(tiny, "{}")
    write_images(tiny, ["val/images/val_7.JPEG"])
    with pytest.raises(ValueError, match=r"val is half sorted: 1 images .* folders of 3 classes"):
        ready(TinyImageNet, tiny)


@pytest.mark.parametrize("part", ["train/n02124075/images", "val/n02124075"])
def test_a_class_without_images_is_named(tiny: Path, ready: Ready, part: str) -> None:
    sort_validation(tiny, "{}")
    for file in (tiny / part).iterdir():
        file.unlink()
    folder = part.removesuffix("/images")
    with pytest.raises(FileNotFoundError, match=rf"No images in .*{folder}: unpack Tiny ImageNet"):
        ready(TinyImageNet, tiny)


def test_no_validation_images_at_all_are_named(tiny: Path, ready: Ready) -> None:
    shutil.rmtree(tiny / "val")
    with pytest.raises(FileNotFoundError, match=r"No images in .*val: unpack Tiny ImageNet anew"):
        ready(TinyImageNet, tiny)


def test_classes_are_those_of_the_list(
    tiny: Path, ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny / "train" / WNIDS[0]).rename(tiny / "train" / "n00000001")
    with pytest.raises(
        ValueError, match=r"there is no folder n01443537, and n00000001 is not listed\. Unpack"
    ):
        ready(TinyImageNet, tiny)
    monkeypatch.undo()
    (tiny / "wnids.txt").unlink()
    with pytest.raises(ValueError, match=r"train has 3 classes, but Tiny ImageNet has 200"):
        ready(TinyImageNet, tiny)


def test_a_missing_dataset_is_explained(tmp_path: Path, ready: Ready) -> None:
    with pytest.raises(FileNotFoundError) as error:
        ready(TinyImageNet, tmp_path / "nowhere", download=False)
    for part in ("No Tiny ImageNet in", "nowhere/tiny-imagenet-200", "download: true", "http://"):
        assert part in str(error.value)


@pytest.fixture
def hosted(tiny: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Has the official archive."""
    write_zip(server.folder / "tiny-imagenet-200.zip", tiny)
    monkeypatch.setattr(TinyImageNet, "archive", server.remote("tiny-imagenet-200.zip"))
    return server


@pytest.mark.parametrize("inner", ["", "tiny-imagenet-200"])
def test_it_is_downloaded_once(
    hosted: Server, tiny: Path, tmp_path: Path, ready: Ready, inner: str
) -> None:
    expected = ready(TinyImageNet, tiny).fingerprint
    assert hosted.requests == []
    assert ready(TinyImageNet, tmp_path / "new" / inner).fingerprint == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tiny-imagenet-200"]
    ready(TinyImageNet, tmp_path / "new" / inner)
    assert len(hosted.requests) == 1


def test_a_download_goes_on_where_it_was_interrupted(
    hosted: Server, tmp_path: Path, ready: Ready
) -> None:
    hosted.cut = [500, 0]
    with pytest.raises(OSError, match=r"tiny-imagenet-200\.zip cannot be downloaded"):
        ready(TinyImageNet, tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="No Tiny ImageNet"):
        ready(TinyImageNet, tmp_path / "new", download=False)
    assert len(ready(TinyImageNet, tmp_path / "new").train) == 12
    assert hosted.requests[-1] == ("tiny-imagenet-200.zip", "bytes=500-")


def test_what_is_not_the_original_is_not_unpacked(
    hosted: Server, tmp_path: Path, ready: Ready
) -> None:
    archive = hosted.folder / "tiny-imagenet-200.zip"
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    with pytest.raises(OSError, match="is not the original"):
        ready(TinyImageNet, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_in_its_place_is_not_replaced(hosted: Server, tmp_path: Path, ready: Ready) -> None:
    (tmp_path / "new" / "tiny-imagenet-200" / "val").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"tiny-imagenet-200 has no folder train: remove"):
        ready(TinyImageNet, tmp_path / "new")
    assert hosted.requests == []
