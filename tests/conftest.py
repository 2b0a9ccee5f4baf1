"""Tiny datasets to test on."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dam_lightning.data import PACS

PER_CELL = 10
"""Images of each class of each domain in the tiny PACS."""


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
