"""CIFAR-10, through torchvision."""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.datasets.utils import check_integrity

from dam_lightning.data.base import ResidentDataModule
from dam_lightning.data.resident import (
    CACHE_VERSION,
    Split,
    content_fingerprint,
    load_splits,
    write_splits,
)
from dam_lightning.files import check_writable

__all__ = ["CIFAR10"]


class CIFAR10(ResidentDataModule):
    """CIFAR-10 (Krizhevsky, 2009): 10 classes, 50,000 training and 10,000 test images of 32 x 32.

    There is one domain. Files are used only where their checksums are those of the originals.

    Args:
        root: the folder ``cifar-10-batches-py``, or the folder that holds it.
        download: fetch the 163 MiB where they are not there yet. They are unpacked beside and then
            moved into place, so that several processes may do it at once.
        options: the arguments of :class:`~dam_lightning.data.base.ResidentDataModule`.
    """

    class_names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    domain_names = ("all",)
    # As in VICO-UoE/DatasetCondensation.
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2023, 0.1994, 0.2010)

    def __init__(self, root: str, download: bool = True, **options: Any) -> None:
        super().__init__(**options)
        folder = Path(root).expanduser()
        self.root = folder.parent if folder.name == _original.base_folder else folder
        self.download = download

    def prepare_data(self) -> None:
        """Download the dataset and put it into the cache, where that was not done before.

        Raises:
            FileNotFoundError: it is not there, or damaged, and was not or could not be downloaded.
        """
        if not ((self.root / _original.base_folder).is_dir() and self._cache_file.exists()):
            self._build()

    def load_splits(self) -> Mapping[str, Split]:
        """The images, from the cache; a damaged or missing cache is built again."""
        splits, metadata = load_splits(self._cache_file, self._build)
        self.fingerprint = metadata["fingerprint"]
        return splits

    @property
    def _cache_file(self) -> Path:
        # The originals are always the same; reading them and their checksums takes seconds.
        checksums = [*_original.train_list, *_original.test_list]
        key = blake2b(repr((CACHE_VERSION, checksums)).encode(), digest_size=16).hexdigest()
        return self.cache_dir / f"cifar10-{key}.safetensors"

    def _build(self) -> None:
        check_writable(self.cache_dir, "cache_dir")
        try:
            try:
                parts = self._read()
            except (OSError, RuntimeError):
                if not self.download:
                    raise
                _fetch(self.root)
                parts = self._read()
        except (OSError, RuntimeError) as error:  # what torchvision raises
            raise FileNotFoundError(
                f"No intact CIFAR-10 in {self.root / _original.base_folder} ({error}). Give as "
                "root the folder that holds cifar-10-batches-py, have it downloaded there with "
                f"download: true, or fetch {_original.url} and unpack it there."
            ) from error
        splits = {name: _as_split(name, part) for name, part in parts.items()}
        fingerprint = content_fingerprint(splits["train"], self.class_names)
        write_splits(self._cache_file, splits, {"fingerprint": fingerprint})

    def _read(self) -> dict[str, torchvision.datasets.CIFAR10]:
        # Looks at the checksums before it reads anything.
        return {
            "train": _original(str(self.root), train=True),
            "test": _original(str(self.root), train=False),
        }


def _fetch(root: Path) -> None:
    """Download the files into a folder of its own, and move them into place one by one.

    Two processes that do it at once put the same files there. After an error nothing is left.
    """
    made = [path for path in (root, *root.absolute().parents) if not path.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as beside:
            archive = root / _original.filename
            if check_integrity(str(archive), _original.tgz_md5):
                (Path(beside) / archive.name).symlink_to(archive.absolute())
            _original(beside, download=True)
            place = root / _original.base_folder
            place.mkdir(exist_ok=True)
            for file in (Path(beside) / place.name).iterdir():
                file.replace(place / file.name)
    except BaseException:
        for folder in made:
            # Not those that others have put something into.
            with suppress(OSError):
                folder.rmdir()
        raise


def _as_split(name: str, source: torchvision.datasets.CIFAR10) -> Split:
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    labels: Tensor = torch.tensor(source.targets, dtype=torch.int64)
    paths = [f"{name}/{number:05d}" for number in range(len(labels))]
    return Split(images, labels, torch.zeros_like(labels), paths)


_original = torchvision.datasets.CIFAR10
