"""Every dataset with as few images as its configs need, in the usual layout."""

import hashlib
import pickle
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from dam_lightning.data import PACS, VLCS, DomainNet, OfficeHome

__all__ = ["use_checksums", "write_dataset"]


def write_dataset(name: str, root: Path) -> None:
    """Write a dataset, by the name of its configs' folder, into ``root``."""
    root.mkdir(parents=True)
    if name in ("cifar10", "cifar100"):
        _write_cifar(name, root)
    elif name == "tiny_imagenet":
        _write_tiny_imagenet(root / "tiny-imagenet-200")
    elif name in ("pacs", "image_folder"):
        _write_domains(root / "PACS", PACS.domain_names, PACS.class_names, 4)
    elif name == "vlcs":
        _write_domains(root / "VLCS", VLCS.domain_names, VLCS.class_names, 4)
    elif name == "office_home":
        _write_domains(root / "office_home", OfficeHome.domain_names, OfficeHome.class_names, 4)
    elif name == "domain_net":
        classes = [f"class_{number:03d}" for number in range(345)]
        _write_domains(root / "domain_net", DomainNet.domain_names, classes, 2)
    else:
        raise AssertionError(name)


def use_checksums(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the files of a tiny CIFAR pass for the originals."""
    if name not in ("cifar10", "cifar100"):
        return
    original = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]

    def md5(file: str) -> str:
        return hashlib.md5((root / original.base_folder / file).read_bytes()).hexdigest()

    for attribute in ("train_list", "test_list"):
        listed = [[file, md5(file)] for file, _ in getattr(original, attribute)]
        monkeypatch.setattr(original, attribute, listed)
    meta = {**original.meta, "md5": md5(original.meta["filename"])}
    monkeypatch.setattr(original, "meta", meta)


def _write_images(paths: Iterable[Path]) -> None:
    generator = np.random.default_rng(0)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)


def _write_domains(
    root: Path, domains: Iterable[str], classes: Iterable[str], per_cell: int
) -> None:
    cells = product(domains, classes, range(per_cell))
    _write_images(root / domain / label / f"{number}.png" for domain, label, number in cells)


def _write_tiny_imagenet(root: Path) -> None:
    names = [f"n{number:08d}" for number in range(200)]
    cells = product(names, range(2))
    _write_images(root / f"train/{name}/images/{name}_{k}.JPEG" for name, k in cells)
    _write_images(root / f"val/images/val_{k}.JPEG" for k in range(200))
    lines = [f"val_{k}.JPEG\t{name}\t0\t0\t62\t62\n" for k, name in enumerate(names)]
    (root / "val/val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(names) + "\n")
    (root / "words.txt").write_text("".join(f"{name}\tthing {name}\n" for name in names))


def _write_cifar(name: str, root: Path) -> None:
    original = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    classes, key = {"cifar10": (10, "labels"), "cifar100": (100, "fine_labels")}[name]
    inner = root / original.base_folder
    inner.mkdir()
    generator = np.random.default_rng(0)
    for file, _ in [*original.train_list, *original.test_list]:
        # For training 50 of each class.
        count = 5000 if file == "train" else 100
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {"data": pixels, key: (np.arange(count) % classes).tolist()}
        (inner / file).write_bytes(pickle.dumps(batch))
    names = [f"class {number}" for number in range(classes)]
    (inner / original.meta["filename"]).write_bytes(pickle.dumps({original.meta["key"]: names}))
