"""Tiny datasets to test on."""

import hashlib
import os
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torchvision.datasets import CIFAR10 as OriginalCIFAR10

from dam_lightning.data import CIFAR10, PACS
from dam_lightning.data.digits import render_digits

if "PYTEST_XDIST_WORKER" in os.environ:
    # One for each worker; more would wait for one another.
    torch.set_num_threads(1)

# The same examples every time: what is red for one is red for all.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

PER_CELL = 10
"""Images of each class of each domain in the tiny PACS."""


@pytest.fixture(autouse=True)
def no_seed_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning leaves a command's seed in the environment."""
    # Set first, so that whatever a test leaves there is taken away after it.
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.delenv("PL_GLOBAL_SEED")


@pytest.fixture(autouse=True, scope="session")
def digits_drawn_once() -> Iterator[None]:
    """Drawing them takes seconds, and many tests ask for the same."""
    drawn: dict[str, Any] = {}

    def once(images: Any, style: str) -> Any:
        if style not in drawn:
            drawn[style] = render_digits(images, style)
        return drawn[style]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dam_lightning.data.digits.render_digits", once)
        yield


def write_images(folder: Path, per_cell: int = PER_CELL, size: int = 8) -> None:
    """Fill ``folder`` with <domain>/<class>/<image>, every image different from the others."""
    generator = np.random.default_rng(0)
    for domain in PACS.domain_names:
        for label in PACS.class_names:
            (folder / domain / label).mkdir(parents=True)
            for number in range(per_cell):
                pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / domain / label / f"pic_{number:03d}.png")


def write_lists(folder: Path, per_cell: int = PER_CELL, test_per_cell: int = 2) -> None:
    """The authors' lists for :func:`write_images`; the last images of a cell are tested on."""
    folder.mkdir(parents=True)
    for domain in PACS.domain_names:
        lines: dict[str, list[str]] = {"train": [], "crossval": [], "test": []}
        for number, label in enumerate(PACS.class_names, start=1):
            for image in range(per_cell):
                line = f"{domain}/{label}/pic_{image:03d}.png {number}"
                part = "train" if image < per_cell - test_per_cell else "crossval"
                lines[part].append(line)
                lines["test"].append(line)
        for part, listed in lines.items():
            (folder / f"{domain}_{part}_kfold.txt").write_text("\n".join(listed) + "\n")


@pytest.fixture
def tiny_pacs(tmp_path: Path) -> Path:
    """A folder that holds a DomainBed PACS with the authors' lists."""
    write_images(tmp_path / "data" / "PACS")
    write_lists(tmp_path / "data" / "PACS" / "splits")
    return tmp_path / "data"


@pytest.fixture
def pacs(tmp_path: Path) -> Callable[..., PACS]:
    """Makes a PACS of 8x8 pixels with its cache in the test's folder."""

    def make(root: Path, **options: object) -> PACS:
        options = {"image_size": 8, "cache_dir": str(tmp_path / "cache"), **options}
        return PACS(str(root), **options)

    return make


@pytest.fixture(scope="session")
def real_pacs(tmp_path_factory: pytest.TempPathFactory) -> PACS:
    """The real PACS, set up; skips where there is none."""
    folder = os.environ.get("DAM_DATA")
    if not folder:
        pytest.skip("DAM_DATA is not set: name with it the folder that holds PACS")
    data = PACS(folder, cache_dir=str(tmp_path_factory.mktemp("cache")))
    data.prepare_data()
    data.setup()
    return data


def write_cifar10(folder: Path, per_file: int) -> None:
    """Random images in the format of the original, in ``cifar-10-batches-py``."""
    inner = folder / "cifar-10-batches-py"
    inner.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        pixels = generator.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        labels = ((np.arange(per_file) + number) % 10).tolist()
        (inner / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    meta = {"label_names": list(CIFAR10.class_names)}
    (inner / "batches.meta").write_bytes(pickle.dumps(meta))


@pytest.fixture
def tiny_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that holds a CIFAR-10 of 500 + 100 images, with checksums to match.

    It can be downloaded too, from a server of the folder ``server`` beside it.
    """
    root = tmp_path / "data"
    write_cifar10(root, per_file=100)

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    inner = root / "cifar-10-batches-py"
    archive = tmp_path / "server" / OriginalCIFAR10.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(inner, inner.name)
    for attribute in ("train_list", "test_list"):
        listed = [[name, md5(inner / name)] for name, _ in getattr(OriginalCIFAR10, attribute)]
        monkeypatch.setattr(OriginalCIFAR10, attribute, listed)
    meta = {**OriginalCIFAR10.meta, "md5": md5(inner / "batches.meta")}
    monkeypatch.setattr(OriginalCIFAR10, "meta", meta)
    monkeypatch.setattr(OriginalCIFAR10, "tgz_md5", md5(archive))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=archive.parent)) as server:
        url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        monkeypatch.setattr(OriginalCIFAR10, "url", url)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield root
        server.shutdown()


@pytest.fixture(scope="session")
def real_cifar10(tmp_path_factory: pytest.TempPathFactory) -> CIFAR10:
    """The real CIFAR-10, set up; skips where there is none."""
    folder = os.environ.get("DAM_DATA")
    if not folder:
        pytest.skip("DAM_DATA is not set: name with it the folder that holds cifar-10-batches-py")
    cache = tmp_path_factory.mktemp("cache")
    data = CIFAR10(folder, download=False, cache_dir=str(cache))
    data.prepare_data()
    data.setup()
    return data
