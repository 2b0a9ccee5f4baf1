"""The file that condensation leaves behind."""

import json
import os
import stat
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2.functional import pil_to_tensor

import dam_lightning.condensed_set
from dam_lightning import CondensedSet, Evaluation
from dam_lightning.backbones import build_backbone
from dam_lightning.functional import Whitening, whiten, zca_matrix

METADATA: dict[str, Any] = {
    "class_names": ["ant", "bee", "große Kuh"],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
    "method": "DM",
    "seed": 3,
    "config": {"ipc": 2, "dam": {"num_domains": 4, "weight": 0.1}, "augmentation": None},
    "recipe": {"epochs": 5, "lr": 0.01},
    "fingerprint": 'with "quotes", and\nlines',
}


def make(ipc: int = 2, channels: int = 3, **metadata: Any) -> CondensedSet:
    images = torch.randn(3 * ipc, channels, 6, 5, generator=torch.Generator().manual_seed(0))
    return CondensedSet(images, torch.arange(3).repeat_interleave(ipc), {**METADATA, **metadata})


SIZE = 3 * 6 * 5


def some_whitening() -> Whitening:
    images = torch.rand(40, 3, 6, 5, generator=torch.Generator().manual_seed(3)).cumsum(3) / 5
    mean, matrix = zca_matrix(images)
    return Whitening(mean.float(), matrix.float())


def make_whitened() -> CondensedSet:
    plain = make(mean=[0.0] * 3, std=[1.0] * 3)
    return CondensedSet(plain.images, plain.labels, plain.metadata, some_whitening())


def rewritten(path: Path, header: dict[str, Any]) -> None:
    """Write a safetensors file with this header and no data."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def test_a_set_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = make()
    saved.images[0, 0, 0, 0] = 1e-30
    saved.save(tmp_path / "set.safetensors")
    loaded = CondensedSet.load(tmp_path / "set.safetensors")
    assert torch.equal(loaded.images, saved.images)
    assert torch.equal(loaded.labels, saved.labels)
    assert loaded.images.dtype == torch.float32
    assert loaded.labels.dtype == torch.int64
    assert loaded.metadata == METADATA
    assert loaded.class_names == METADATA["class_names"]
    assert loaded.image_shape == (3, 6, 5)
    loaded.save(str(tmp_path / "again.safetensors"))
    assert CondensedSet.load(str(tmp_path / "again.safetensors")).metadata == METADATA


def test_saving_takes_parameters_and_views(tmp_path: Path) -> None:
    images = torch.nn.Parameter(torch.randn(3, 6, 5, 4).permute(0, 3, 1, 2))
    metadata = {**METADATA, "mean": [0.0] * 4, "std": [1.0] * 4}
    CondensedSet(images, torch.arange(6)[::2] // 2, metadata).save(tmp_path / "set")
    loaded = CondensedSet.load(tmp_path / "set")
    assert torch.equal(loaded.images, images)
    assert not loaded.images.requires_grad


def test_the_file_holds_images_labels_and_json_and_nothing_else(tmp_path: Path) -> None:
    """No masks, and nothing that could be executed."""
    path = tmp_path / "set.safetensors"
    make().save(path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert set(header) == {"images", "labels", "__metadata__"}
    assert len(content) == 8 + length + 6 * 3 * 6 * 5 * 4 + 6 * 8
    stored = {key: json.loads(value) for key, value in header["__metadata__"].items()}
    assert len(stored.pop("checksum")) == 8
    assert stored == METADATA
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"images", "labels"}


def test_metadata_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        make(config=object()).save(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_saving_makes_the_folder_and_an_ordinary_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "set.safetensors"
    make().save(path)
    (path.parent / "other").write_text("")
    assert [p.name for p in sorted(path.parent.iterdir())] == ["other", "set.safetensors"]
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode
    assert stat.S_ISREG(path.stat().st_mode)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "set.safetensors"
    make().save(path)
    before = path.read_bytes()

    def fail(tensors: object, filename: os.PathLike[str], metadata: object) -> None:
        Path(filename).write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(dam_lightning.condensed_set, "save_file", fail)
    with pytest.raises(type(error)):
        make(ipc=1).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_save_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    make(ipc=4).save(path)
    make(ipc=1).save(path)
    assert len(CondensedSet.load(path)) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_it_says_what_it_is() -> None:
    metadata = {"class_names": ["a", "b"], "mean": [0.0], "std": [1.0]}
    images, labels = torch.zeros(4, 1, 8, 6), torch.tensor([0, 0, 1, 1])
    plain = CondensedSet(images, labels, metadata)
    assert repr(plain) == "CondensedSet(4 images 1x8x6 of 2 classes)"
    by_dm = CondensedSet(images, labels, {**metadata, "method": "DM"})
    assert repr(by_dm) == "CondensedSet(4 images 1x8x6 of 2 classes, by DM)"


def test_it_is_a_dataset() -> None:
    condensed = make()
    assert len(condensed) == 6
    image, label = condensed[3]
    assert torch.equal(image, condensed.images[3])
    assert label == 1
    batches = list(DataLoader(condensed, batch_size=4))
    assert torch.equal(torch.cat([images for images, _ in batches]), condensed.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), condensed.labels)
    assert sum(len(y) for _, y in DataLoader(condensed, batch_size=4, shuffle=True)) == 6
    with pytest.raises(IndexError):
        condensed[6]
    assert len(list(condensed)) == 6  # type: ignore[call-overload]


def test_pixels_undo_the_normalisation_and_are_clipped() -> None:
    raw = torch.rand(6, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(METADATA[key]).view(3, 1, 1) for key in ("mean", "std"))
    condensed = CondensedSet((raw - mean) / std, make().labels, METADATA)
    torch.testing.assert_close(condensed.pixels(), raw, atol=1e-6, rtol=0)
    condensed.images[0, :, 0, 0] = 1e6
    condensed.images[0, :, 0, 1] = -1e6
    pixels = condensed.pixels()
    assert pixels[0, :, 0, 0].tolist() == [1, 1, 1]
    assert pixels[0, :, 0, 1].tolist() == [0, 0, 0]
    assert pixels.dtype == torch.float32
    assert condensed.images[0, 0, 0, 0] == 1e6  # and the set is left as it was


def test_real_images_are_normalised_as_the_set_is() -> None:
    pixels = torch.rand(4, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(METADATA[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert torch.equal(make().normalise(pixels), (pixels - mean) / std)
    white = make_whitened()
    assert torch.equal(white.normalise(pixels), whiten(pixels, *some_whitening()))
    assert white.normalise(pixels.double()).dtype == torch.float32
    for condensed in (make(), white):
        for wrong in (torch.zeros(4, 3, 6, 5, dtype=torch.uint8), pixels[0], pixels[:, :, :5]):
            with pytest.raises(ValueError, match=r"pixels must be floating \(N, 3, 6, 5\) in"):
                condensed.normalise(wrong)


def test_a_whitened_set_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = make_whitened()
    saved.save(tmp_path / "set")
    with safe_open(tmp_path / "set", framework="pt") as file:
        assert set(file.keys()) == {"images", "labels", "whitening_mean", "whitening_matrix"}
    loaded = CondensedSet.load(tmp_path / "set")
    assert loaded.whitening is not None
    for found, expected in zip(loaded.whitening, some_whitening(), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(loaded.images, saved.images)
    assert loaded.metadata == saved.metadata
    make().save(tmp_path / "plain")
    assert CondensedSet.load(tmp_path / "plain").whitening is None


def test_pixels_undo_the_whitening(tmp_path: Path) -> None:
    raw = torch.rand(6, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    condensed = make_whitened()
    condensed.images = condensed.normalise(raw)
    assert (condensed.images - raw).abs().max() > 0.5
    torch.testing.assert_close(condensed.pixels(), raw, atol=1e-5, rtol=0)
    condensed.to_image_folder(tmp_path)
    with Image.open(tmp_path / "bee" / "0001.png") as image:
        assert (pil_to_tensor(image) / 255 - raw[3]).abs().max() <= 0.5 / 255 + 1e-5
    condensed.images *= 100
    assert condensed.pixels().min() == 0
    assert condensed.pixels().max() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"whitening_mean": None}, "whitening_mean"),
        ({"whitening_matrix": None}, "whitening_matrix"),
        ({"whitening_mean": torch.zeros(SIZE - 1)}, r"whitening_mean must be float32 \(90,\)"),
        ({"whitening_mean": torch.zeros(SIZE).half()}, "whitening_mean must be float32"),
        (
            {"whitening_matrix": torch.eye(SIZE)[:-1]},
            r"whitening_matrix must be float32 \(90, 90\)",
        ),
        ({"whitening_matrix": torch.eye(SIZE).double()}, "whitening_matrix must be float32"),
        ({"whitening_matrix": torch.eye(SIZE) / 0}, "whitening_matrix has values that are not fin"),
        ({"mean": "[0.5, 0.0, 0.0]"}, "mean must be 0 and std 1"),
        ({"std": "[0.5, 1.0, 1.0]"}, "mean must be 0 and std 1"),
    ],
)
def test_a_damaged_whitening_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "set"
    good = make_whitened()
    good.save(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        metadata = file.metadata()
    del metadata["checksum"]
    for name, value in change.items():
        if value is None:
            del tensors[name]
        else:
            (metadata if isinstance(value, str) else tensors)[name] = value
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=rf"is damaged \(.*{message}"):
        CondensedSet.load(path)


def test_an_image_folder_is_read_back(tmp_path: Path) -> None:
    condensed = make(ipc=2)
    condensed.to_image_folder(tmp_path / "export")
    found = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "export").rglob("*.png"))
    assert found == [
        f"export/{name}/{number:04d}.png" for name in METADATA["class_names"] for number in (0, 1)
    ]
    folder = ImageFolder(str(tmp_path / "export"))
    assert folder.classes == METADATA["class_names"]
    assert len(folder) == 6
    expected = (condensed.pixels() * 255).round().byte()
    for (image, label), pixels, wanted in zip(folder, expected, condensed.labels, strict=True):
        assert label == wanted
        assert torch.equal(pil_to_tensor(image), pixels)


def test_an_image_folder_of_grey_images(tmp_path: Path) -> None:
    condensed = make(ipc=1, channels=1, mean=[0.5], std=[0.2])
    condensed.to_image_folder(tmp_path)
    with Image.open(tmp_path / "ant" / "0000.png") as image:
        assert image.mode == "L"
        expected = (condensed.pixels()[0] * 255).round().byte()
        assert torch.equal(pil_to_tensor(image), expected)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, "another place") for name in ("a/b", "..", ".", "", "a\\b", "/etc", "nul\0")),
        *(
            (name, "not printable")
            for name in ("a\nb", "\x1b[31mred", "\x7f", "\udc80", "a\u202eb")
        ),
        ("x" * 256, "it has 256 bytes, the limit is 255"),
        ("ß" * 128, "it has 256 bytes, the limit is 255"),
    ],
)
def test_a_class_name_that_is_no_folder_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    condensed = make(class_names=["ant", "bee", name])
    with pytest.raises(ValueError, match=f"cannot be the name of a folder: .*{reason}") as refused:
        condensed.to_image_folder(tmp_path / "export")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 200
    assert list(tmp_path.iterdir()) == []


def test_a_class_name_may_be_as_long_as_a_folders(tmp_path: Path) -> None:
    make(class_names=["ant", "a b", "x" * 255]).to_image_folder(tmp_path)
    assert len(list((tmp_path / ("x" * 255)).iterdir())) == 2


def test_class_names_are_counted_once(tmp_path: Path) -> None:
    class Counted(list[str]):
        """Tells how often it was searched."""

        def count(self, value: Any) -> int:
            raise AssertionError("searched once for every class")

    condensed = make()
    condensed.class_names = Counted(condensed.class_names)
    condensed.to_image_folder(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_two_classes_of_one_name_lose_no_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="several classes are named 'bee'"):
        make(class_names=["ant", "bee", "bee"]).to_image_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_export_holds_no_pictures_of_an_earlier_one(tmp_path: Path) -> None:
    make(ipc=5).to_image_folder(tmp_path)
    with pytest.raises(FileExistsError, match="exists; give a new folder"):
        make(ipc=1).to_image_folder(tmp_path)
    assert len(list(tmp_path.rglob("*.png"))) == 15


@pytest.mark.parametrize("folder", [False, True])
def test_a_missing_file_is_named(tmp_path: Path, folder: bool) -> None:
    path = tmp_path if folder else tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=f"there is no condensed set at {path}"):
        CondensedSet.load(path)


def damaged(path: Path, kind: str) -> None:
    """Files that are no condensed set."""
    make().save(path)
    content = path.read_bytes()
    tensors = {"images": torch.zeros(3, 3, 6, 5), "labels": torch.arange(3)}
    encoded = {key: json.dumps(value) for key, value in METADATA.items()}
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "another pixel":
        path.write_bytes(content.replace(b"\x3f", b"\x3e", 1))
    elif kind == "another seed":
        path.write_bytes(content.replace(b'"seed":"3"', b'"seed":"4"'))
    elif kind == "text":
        path.write_text("this is a text file, and long enough to be mistaken for more\n" * 9)
    elif kind == "truncated":
        path.write_bytes(content[:-100])
    elif kind == "header only":
        path.write_bytes(content[:200])
    elif kind == "longer":
        path.write_bytes(content + b"x")
    elif kind == "no metadata":
        save_file(tensors, path)
    elif kind == "metadata of others":
        save_file(tensors, path, {"format": "pt"})
    elif kind == "other tensors":
        save_file({"weight": torch.zeros(3)}, path, encoded)
    elif kind == "no labels":
        save_file({"images": tensors["images"]}, path, encoded)
    elif kind == "uint8 images":
        save_file({**tensors, "images": tensors["images"].byte()}, path, encoded)
    elif kind == "labels out of range":
        save_file({**tensors, "labels": torch.arange(1, 4)}, path, encoded)
    elif kind == "mean is a number":
        save_file(tensors, path, {**encoded, "mean": "0.5"})
    elif kind == "images that are not finite":
        save_file({**tensors, "images": tensors["images"] / 0}, path, encoded)
    elif kind == "a seed that is a text":
        save_file(tensors, path, {**encoded, "seed": '"3"'})
    elif kind == "pickle":
        torch.save(tensors, path)
    elif kind == "no tensors":
        rewritten(path, {"__metadata__": encoded})
    else:
        raise AssertionError(kind)


def test_a_set_of_other_tools_needs_no_checksum(tmp_path: Path) -> None:
    made = make()
    encoded = {key: json.dumps(value) for key, value in METADATA.items()}
    save_file({"images": made.images, "labels": made.labels}, tmp_path / "x.safetensors", encoded)
    assert CondensedSet.load(tmp_path / "x.safetensors").images.equal(made.images)


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "another pixel",
        "another seed",
        "text",
        "truncated",
        "header only",
        "longer",
        "no metadata",
        "metadata of others",
        "other tensors",
        "no labels",
        "uint8 images",
        "labels out of range",
        "mean is a number",
        "images that are not finite",
        "a seed that is a text",
        "pickle",
        "no tensors",
    ],
)
def test_other_files_are_refused_with_advice(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file.safetensors"
    damaged(path, kind)
    with pytest.raises(ValueError, match=r"is not a condensed set, or is damaged \(.+\)") as caught:
        CondensedSet.load(path)
    assert str(path) in str(caught.value)
    assert "condensed.safetensors of a run's folder" in str(caught.value)


@pytest.mark.parametrize("key", ["class_names", "mean", "std"])
def test_required_metadata(key: str) -> None:
    metadata = {k: v for k, v in METADATA.items() if k != key}
    with pytest.raises(ValueError, match=f"metadata lacks {key}"):
        CondensedSet(make().images, make().labels, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(6, 3, 6, 5, dtype=torch.float64)}, "must be float32"),
        ({"images": torch.zeros(6, 3, 6)}, r"must be float32 \(M, C, H, W\)"),
        ({"images": torch.zeros(6, 1, 6, 5)}, "mean has 3 values, the images have 1 channels"),
        ({"labels": torch.zeros(6, dtype=torch.int32)}, r"must be int64 \(6,\)"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"must be int64 \(6,\)"),
        ({"labels": torch.full((6,), 3)}, r"lie in 0\.\.2"),
        ({"labels": torch.full((6,), -1)}, r"lie in 0\.\.2"),
        ({"images": torch.zeros(0, 3, 6, 5), "labels": torch.zeros(0).long()}, "not be empty"),
        ({"metadata": {**METADATA, "std": [0.1]}}, "std has 1 values"),
        ({"images": torch.zeros(6, 3, 6, 5) / 0}, "images have values that are not finite"),
        ({"images": torch.ones(6, 3, 6, 5) / 0}, "images have values that are not finite"),
        *(
            ({"metadata": {**METADATA, "method": value}}, "method must be a text, got ")
            for value in (3, None, ["DM"])
        ),
        *(
            ({"metadata": {**METADATA, key: value}}, f"{key} must be a whole number, got ")
            for key in ("ipc", "dam", "seed", "steps")
            for value in ("3", None, 2.0, True, [], {"a": 1})
        ),
    ],
)
def test_tensors_and_metadata_must_fit(change: dict[str, Any], message: str) -> None:
    good = {"images": make().images, "labels": make().labels, "metadata": METADATA}
    with pytest.raises(ValueError, match=message):
        CondensedSet(**{**good, **change})


def test_metadata_is_a_copy() -> None:
    metadata = dict(METADATA)
    condensed = CondensedSet(make().images, make().labels, metadata)
    metadata["method"] = "other"
    assert condensed.metadata["method"] == "DM"


def test_a_file_has_no_module_imported_that_nobody_asked_for(tmp_path: Path) -> None:
    metadata = {"class_names": ["a"], "mean": [0.0], "std": [1.0]}
    path = tmp_path / "set.safetensors"

    def evaluation(backbone: str, **options: Any) -> Evaluation:
        recipe = {"backbone": backbone}
        images, labels = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)
        CondensedSet(images, labels, {**metadata, "recipe": recipe}).save(path)
        return Evaluation(str(path), **options)

    with pytest.raises(ValueError, match=r"asks for the backbone antigravity\.Fly, .* if you know"):
        evaluation("antigravity.Fly")
    assert "antigravity" not in sys.modules
    # Known by name; what is no network is not called.
    given = evaluation("antigravity.Fly", recipe={"backbone": "subprocess.Popen"})
    with pytest.raises(ValueError, match=r"no backbone 'subprocess\.Popen'.*torch\.nn\.Module"):
        build_backbone(given.recipe.backbone, (1, 8, 8), 1, {"args": "touch owned"})
