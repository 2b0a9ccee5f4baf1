"""Own images, in every layout and with every mistake."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dam_lightning import ImageFolder

Make = Callable[..., ImageFolder]
Cells = dict[tuple[str, str], int]
TWO_DOMAINS: Cells = {
    (domain, name): 10 for domain in ("drawn", "seen") for name in ("cat", "dog", "owl")
}


def fill(folder: Path, cells: Cells, suffix: str = "png") -> Path:
    """``<domain>/<class>``, or ``<class>`` for the domain "", with so many images of 9 x 7."""
    generator = np.random.default_rng(len(str(folder)))
    for (domain, name), count in cells.items():
        cell = folder / domain / name
        cell.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (7, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(cell / f"{number:02d}.{suffix}")
    return folder


def one_domain(count: int = 10) -> Cells:
    return {("", name): count for name in ("cat", "dog", "owl")}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Sets one up, of 8 x 8 pixels."""

    def ready(root: Path, **options: Any) -> ImageFolder:
        data = ImageFolder(str(root), image_size=8, cache_dir=str(tmp_path / "cache"), **options)
        data.prepare_data()
        data.setup()
        return data

    return ready


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for name in ("image_folder", "folders"):
        monkeypatch.setattr(f"dam_lightning.data.{name}.rank_zero_info", lines.append)
    return lines


def test_domains_and_classes(tmp_path: Path, make: Make, said: list[str]) -> None:
    data = make(fill(tmp_path / "own", TWO_DOMAINS))
    assert data.class_names == ["cat", "dog", "owl"]
    assert data.domain_names == ["drawn", "seen"]
    assert (len(data.train), len(data.test), data.val) == (54, 6, None)
    assert data.image_shape == (3, 8, 8)
    for split in (data.train, data.test):
        for path, label, domain in zip(split.paths, split.labels, split.domains, strict=True):
            assert path.split("/")[:2] == [data.domain_names[domain], data.class_names[label]]
    assert not set(data.train.paths) & set(data.test.paths)
    assert "54 train, 6 test images; classes cat, dog, owl; domains drawn, seen" in said[-2]


def test_classes_only(tmp_path: Path, make: Make) -> None:
    data = make(fill(tmp_path / "own", one_domain()))
    assert (data.class_names, data.domain_names) == (["cat", "dog", "owl"], ["all"])
    assert (len(data.train), len(data.test)) == (27, 3)
    assert data.train.domains.max() == 0


def test_the_images_are_those_of_the_files(tmp_path: Path, make: Make) -> None:
    root = fill(tmp_path / "own", TWO_DOMAINS)
    data = make(root)
    for number in (0, 30, 53):
        with Image.open(root / data.train.paths[number]) as image:
            expected = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(data.train.images[number].permute(1, 2, 0), expected)


def test_given_splits(tmp_path: Path, make: Make) -> None:
    root = tmp_path / "own"
    for part, count in (("train", 4), ("test", 2), ("val", 3)):
        fill(root / part, dict.fromkeys(TWO_DOMAINS, count))
    data = make(root)
    assert data.val is not None
    assert [len(split) for split in (data.train, data.test, data.val)] == [24, 12, 18]
    for part, split in (("train", data.train), ("test", data.test), ("val", data.val)):
        assert {path.split("/")[0] for path in split.paths} == {part}
    assert data.domain_names == ["drawn", "seen"]
    assert len(data.val_dataloader()) == 1


@pytest.mark.parametrize("names", [("Train", "TEST"), ("training", "testing"), ("train", "test")])
def test_names_of_splits(tmp_path: Path, make: Make, names: tuple[str, str]) -> None:
    """Written in another way; beside folders without images."""
    root = tmp_path / "own"
    for name, count in zip(names, (4, 2), strict=True):
        fill(root / name, one_domain(count))
    for name in ("annotations", "val"):
        (root / name).mkdir()
    data = make(root)
    assert [len(split) for split in (data.train, data.test)] == [12, 6]
    assert (data.domain_names, data.val) == (["all"], None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "test", "extra"), r"like splits \(test, train\) and beside them extra\. Move"),
        (("test", "Val"), r"like splits \(Val, test\), but none named train\. Put the training"),
        (("train", "Training", "test"), "several training parts: Training, train"),
    ],
)
def test_test_images_are_never_trained_on(
    tmp_path: Path, make: Make, names: tuple[str, ...], message: str
) -> None:
    for name in names:
        fill(tmp_path / "own" / name, one_domain(2))
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "own")


def test_a_test_folder_without_images_is_named(tmp_path: Path, make: Make) -> None:
    fill(tmp_path / "own" / "train", one_domain(2))
    (tmp_path / "own" / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no test images in .*own/test: add some, or rem"):
        make(tmp_path / "own")


def test_training_and_validation_folders_leave_the_test_part_to_chance(
    tmp_path: Path, make: Make
) -> None:
    fill(tmp_path / "own" / "train", one_domain())
    fill(tmp_path / "own" / "valid", one_domain(2))
    data = make(tmp_path / "own")
    assert data.val is not None
    assert [len(split) for split in (data.train, data.test, data.val)] == [27, 3, 6]


def test_a_class_may_be_called_train(tmp_path: Path, make: Make) -> None:
    data = make(fill(tmp_path / "own", {("", name): 4 for name in ("bus", "test", "train")}))
    assert data.class_names == ["bus", "test", "train"]


def test_a_list_of_test_images(tmp_path: Path, make: Make) -> None:
    root = fill(tmp_path / "own", TWO_DOMAINS)
    listed = ["drawn/cat/03.png", "seen/owl/00.png", "seen/dog/09.png"]
    source = tmp_path / "test.txt"
    source.write_text("\n".join([*listed, "", listed[0].replace("/", "\\")]))
    data = make(root, test_list=str(source))
    assert sorted(data.test.paths) == sorted(listed)
    assert len(data.train) == 57
    source.write_text("seen/dog/10.png\n")
    with pytest.raises(FileNotFoundError, match=r"1 images that .*test\.txt lists.*seen/dog/10"):
        make(root, test_list=str(source))
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.txt, which test_list names"):
        make(root, test_list=str(tmp_path / "none.txt"))


def test_a_list_may_be_written_in_other_ways(tmp_path: Path, make: Make) -> None:
    root = fill(tmp_path / "own", one_domain())
    source = tmp_path / "test.txt"
    (root / "cat" / "00.png").rename(root / "cat" / " a\\b.png")
    (tmp_path / "link").symlink_to(root)
    lines = ["./cat/03.png", f"{root}/dog//01.png", f"{tmp_path}/link/owl/02.png"]
    source.write_text("\n".join([*lines, "cat/ a\\b.png"]), encoding="utf-8-sig")
    listed = ["cat/ a\\b.png", "cat/03.png", "dog/01.png", "owl/02.png"]
    assert sorted(make(tmp_path / "link", test_list=str(source)).test.paths) == listed
    source.write_bytes(b"cat/\xff.png\n")
    with pytest.raises(ValueError, match=r"test\.txt, which test_list names, is no text in UTF-8"):
        make(root, test_list=str(source))
    source.write_text("\n")
    with pytest.raises(FileNotFoundError, match=r"no test images: .*test\.txt lists none"):
        make(root, test_list=str(source))


def test_the_drawn_split_is_the_same_in_every_run(tmp_path: Path, make: Make) -> None:
    root = fill(tmp_path / "own", TWO_DOMAINS)
    tested = make(root, seed=1).test.paths
    assert make(root, seed=2).test.paths == tested
    assert make(root, split_seed=1).test.paths != tested
    assert len(make(root, test_share=0.5).test) == 30


def test_what_is_hidden_and_what_is_no_image_is_passed_over(tmp_path: Path, make: Make) -> None:
    root = fill(tmp_path / "own", TWO_DOMAINS)
    (root / "notes").mkdir()
    (root / "notes" / "todo.txt").write_text("more owls")
    for place in ("seen/cat/._01.png", "seen/cat/Thumbs.db", ".DS_Store", "list.txt"):
        (root / place).write_text("no image")
    fill(root / "__MACOSX", TWO_DOMAINS)
    fill(root / "seen" / ".ipynb_checkpoints", one_domain())
    data = make(root)
    assert (data.domain_names, len(data.train)) == (["drawn", "seen"], 54)


def test_files_that_are_not_read_are_counted(tmp_path: Path, make: Make, said: list[str]) -> None:
    root = fill(tmp_path / "own", one_domain())
    fill(root, one_domain(2), suffix="gif")
    for place in ("cat/a.avif", "dog/b.AVIF", "owl/list.txt", "owl/._c.png"):
        (root / place).write_text("no image")
    data = make(root)
    assert len(data.train) + len(data.test) == 36
    assert said[0].startswith(f"{root}: left out are 3 files")
    assert said[0].endswith("(2 .avif, 1 .txt).")


def test_a_link_to_a_folder_around_it_is_not_followed(tmp_path: Path, make: Make) -> None:
    root = fill(tmp_path / "own", one_domain())
    (root / "cat" / "self").symlink_to(".")
    (root / "dog" / "up").symlink_to(root)
    data = make(root)
    assert len(data.train) + len(data.test) == 30


def test_two_examples_tell_of_a_wrong_layout(tmp_path: Path, make: Make) -> None:
    for depth in range(1, 6):
        fill(tmp_path / "own" / "/".join("abcdef"[:depth]), {("", ""): 1})
    with pytest.raises(ValueError, match="cannot be told apart") as error:
        make(tmp_path / "own")
    assert str(error.value).count(".png") == 2
    assert f"{tmp_path}/own/a/00.png and {tmp_path}/own/a/b/c/d/e/00.png" in str(error.value)


def test_folders_below_a_class_go_with_the_layout_told(tmp_path: Path, make: Make) -> None:
    root = tmp_path / "own"
    for name in ("cat", "dog"):
        fill(root / name, {("images", ""): 4, ("", ""): 0})
    with pytest.raises(ValueError, match=r"single class, 'images'.* Give layout: class or"):
        make(root)
    data = make(root, layout="class")
    assert data.class_names == ["cat", "dog"]
    assert len(data.train) == 6


def test_capital_suffixes_and_links(tmp_path: Path, make: Make) -> None:
    root = fill(tmp_path / "own", one_domain(), suffix="JPG")
    (root / "yak").symlink_to(fill(tmp_path / "else", {("", "y"): 5}) / "y")
    assert make(root).class_names == ["cat", "dog", "owl", "yak"]


def test_a_class_in_some_domains_only_is_reported(
    tmp_path: Path, make: Make, said: list[str]
) -> None:
    cells = {cell: count for cell, count in TWO_DOMAINS.items() if cell != ("seen", "owl")}
    data = make(fill(tmp_path / "own", cells))
    assert data.class_names == ["cat", "dog", "owl"]
    assert "No images in domain 'seen' of the train split of: owl" in said
    (tmp_path / "own" / "drawn" / "yak").mkdir()
    with pytest.raises(FileNotFoundError, match=r"Class 'yak' has no training images in .*own"):
        make(tmp_path / "own")


def test_a_class_without_test_images_is_reported(
    tmp_path: Path, make: Make, said: list[str]
) -> None:
    data = make(fill(tmp_path / "own", {**one_domain(), ("", "cat"): 1}))
    assert len(data.test) == 2
    assert "No images in test split of: cat" in said
    with pytest.raises(FileNotFoundError, match="no class has two images in one domain"):
        make(fill(tmp_path / "single", one_domain(1)), test_share=0.9)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: root.rename(root.parent / "moved"), "There is no folder .*own"),
        (lambda root: root.rename(root.parent / "m") and root.touch(), "There is no folder .*own"),
        (lambda root: (root / "a.png").touch(), r"told apart .* because of where .*own/a\.png and"),
        (
            lambda root: (root / "seen" / "a.png").touch(),
            r"told apart .* because of where .*own/seen/a\.png and",
        ),
    ],
)
def test_wrong_folders_are_explained(
    tmp_path: Path, make: Make, spoil: Callable[[Path], Any], message: str
) -> None:
    root = fill(tmp_path / "own", TWO_DOMAINS)
    spoil(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(root)


def test_images_outside_the_told_layout_are_named(tmp_path: Path, make: Make) -> None:
    root = fill(tmp_path / "own", one_domain())
    with pytest.raises(ValueError, match=r"own/\w+/\d+\.png lies outside the folders <domain>/<cl"):
        make(root, layout="domain/class")


def test_a_folder_without_images(tmp_path: Path, make: Make) -> None:
    (tmp_path / "own" / "cat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"No images in .*own\. Expected <class>/<image>"):
        make(tmp_path / "own")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "classes"}, "layout must be"),
        ({"test_share": 1.0}, "test_share must be"),
        ({"test_share": 0.1, "test_list": "a.txt"}, "leave out test_share, or the list"),
        ({"std": (0.1, 0.0, 0.1)}, "std above 0"),
        ({"std": (0.1, float("nan"), 0.1)}, "finite"),
        ({"mean": (0.1, float("inf"), 0.1)}, "finite"),
        ({"mean": (0.1, 0.0)}, "3 values each"),
        ({"resize": "pad"}, "resize must be squash or crop"),
        ({"validation_share": 0.0}, "validation_share must be"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFolder("own", **options)
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        ImageFolder("own", image_size=0)


def test_splits_given_twice_are_refused(tmp_path: Path, make: Make) -> None:
    root = tmp_path / "own"
    for part in ("train", "test", "val"):
        fill(root / part, one_domain(4))
    with pytest.raises(ValueError, match="own/test holds the test images: leave out"):
        make(root, test_share=0.2)
    with pytest.raises(ValueError, match="validation images of its own: leave out"):
        make(root, validation_share=0.2)
    fill(root / "valid", one_domain(4))
    with pytest.raises(ValueError, match="several validation parts: val, valid"):
        make(root)


def test_classes_of_the_test_part_must_be_trained_on(tmp_path: Path, make: Make) -> None:
    fill(tmp_path / "own" / "train", one_domain(4))
    fill(tmp_path / "own" / "test", {**one_domain(4), ("", "yak"): 1})
    with pytest.raises(FileNotFoundError, match="Class 'yak' has no training images"):
        make(tmp_path / "own")


def test_another_way_of_decoding_is_decoded_anew(tmp_path: Path, make: Make) -> None:
    root = fill(tmp_path / "own", one_domain())
    squashed = make(root)
    cropped = make(root, resize="crop")
    assert squashed.fingerprint != cropped.fingerprint
    assert make(root).fingerprint == squashed.fingerprint
    (root / "cat" / "99.png").write_text("no image")
    with pytest.raises(ValueError, match=r"1 of 31 images cannot be read: .*99\.png"):
        make(root)
    assert len(make(root, skip_unreadable=True).train) == 27
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_datasets_alike_in_names_sizes_and_times_are_told_apart(tmp_path: Path, make: Make) -> None:
    for name in ("first", "second one"):
        fill(tmp_path / name, one_domain(), suffix="bmp")
        for path in (tmp_path / name).rglob("*.bmp"):
            os.utime(path, (0, 0))
    first, second = make(tmp_path / "first"), make(tmp_path / "second one")
    assert first.train.paths == second.train.paths
    assert not torch.equal(first.train.images, second.train.images)


def test_a_link_to_nowhere_is_an_unreadable_image(tmp_path: Path, make: Make) -> None:
    root = fill(tmp_path / "own", one_domain())
    (root / "cat" / "lost.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"1 of 31 .*cat/lost\.png \(No such file or directory\)"):
        make(root)
    assert len(make(root, skip_unreadable=True).train) == 27


def test_what_was_left_out_is_said_in_later_runs_too(
    tmp_path: Path, make: Make, said: list[str]
) -> None:
    root = tmp_path / "own"
    for part in ("train", "test"):
        fill(root / part, one_domain(2))
    for path in (root / "test" / "cat").iterdir():
        path.write_text("no image")
    line = "2 of 12 images could not be read and are left out; to have them tried again, remove "
    whole = "none of the test images of cat can be read."
    for again in (False, True):
        said.clear()
        assert len(make(root, skip_unreadable=True).test) == 4
        assert any(each.startswith(line) for each in said) == again
        assert whole in said


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ("test", "none of the test images of any class can be read: replace some"),
        ("val", "none of the val images of any class can be read"),
        ("train/dog", "none of the train images of dog can be read"),
    ],
)
def test_a_part_must_not_be_left_out_whole(
    tmp_path: Path, make: Make, spoilt: str, message: str
) -> None:
    root = tmp_path / "own"
    for part in ("train", "test", "val"):
        fill(root / part, one_domain(2))
    for path in (root / spoilt).rglob("*.png"):
        path.write_text("no image")
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            make(root, skip_unreadable=True)


def test_sizes_beyond_the_disk_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "own", one_domain(2))
    for size in (10_000_000, 10**12):
        data = ImageFolder(str(root), image_size=size, cache_dir=str(tmp_path / "cache"))
        with pytest.raises(OSError, match=r"MiB are free: .* with cache_dir, or lower image_size"):
            data.prepare_data()
        assert not (tmp_path / "cache").exists()
