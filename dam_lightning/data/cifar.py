"""CIFAR-10 and CIFAR-100, through torchvision."""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision
from torch import Tensor
from torchvision.datasets.utils import check_integrity

from dam_lightning.data.base import ResidentDataModule
from dam_lightning.data.resident import CACHE_VERSION, Split, content_fingerprint
from dam_lightning.data.scratch import made_folder, scratch_folder
from dam_lightning.data.split_cache import load_splits, prepare_splits, write_splits

__all__ = ["CIFAR10", "CIFAR100"]

_FINE_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class _CIFAR(ResidentDataModule):
    """What the two have in common.

    Args:
        root: the folder of the originals, or the folder that holds it.
        download: fetch the originals where they are not there yet.
        options: the arguments of :class:`~dam_lightning.data.base.ResidentDataModule`.
    """

    domain_names = ("all",)
    title: ClassVar[str]
    original: ClassVar[Any]
    """The dataset's class in torchvision, which knows addresses, checksums and formats."""

    def __init__(self, root: str, download: bool = True, **options: Any) -> None:
        super().__init__(**options)
        folder = Path(root).expanduser()
        self.root = folder.parent if folder.name == self.original.base_folder else folder
        self.download = download

    def prepare_data(self) -> None:
        """Download the dataset and put it into the cache, where that was not done before.

        Raises:
            FileNotFoundError: it is not there, or damaged, and was not or could not be downloaded.
        """
        prepare_splits(self._cache_folder, self._build)
        if not (self.root / self.original.base_folder).is_dir():
            # Cached from elsewhere, but a root without the dataset is a mistake.
            self._build()

    def load_splits(self) -> Mapping[str, Split]:
        """The images, from the cache; a damaged or missing cache is built again."""
        splits, metadata = load_splits(self._cache_folder, self._build)
        self.fingerprint = metadata["fingerprint"]
        return splits

    @property
    def _cache_folder(self) -> Path:
        # The originals are always the same; reading them and their checksums takes seconds.
        checksums = [*self.original.train_list, *self.original.test_list]
        key = blake2b(repr((CACHE_VERSION, checksums)).encode(), digest_size=16).hexdigest()
        return self.cache_dir / f"{type(self).__name__.lower()}-{key}"

    def _build(self) -> None:
        folder = self.original.base_folder
        try:
            try:
                parts = self._read()
            except (OSError, RuntimeError):
                if not self.download:
                    raise
                self._fetch()
                parts = self._read()
        except (OSError, RuntimeError) as error:  # what torchvision raises
            raise FileNotFoundError(
                f"No intact {self.title} in {self.root / folder} ({error}). Give as root the "
                f"folder that holds {folder}, have it downloaded there with download: true, or "
                f"fetch {self.original.url} and unpack it there."
            ) from error
        splits = {name: _as_split(name, part) for name, part in parts.items()}
        fingerprint = content_fingerprint(splits["train"], self.class_names)
        write_splits(self._cache_folder, splits, {"fingerprint": fingerprint})

    def _read(self) -> dict[str, Any]:
        # Looks at the checksums before it reads anything.
        return {
            "train": self.original(str(self.root), train=True),
            "test": self.original(str(self.root), train=False),
        }

    def _fetch(self) -> None:
        """Download the files into a folder of its own, and move them into place one by one.

        Two processes that do it at once put the same files there. After an error nothing is left.
        """
        with made_folder(self.root), scratch_folder(self.root, ".download-") as beside:
            archive = self.root / self.original.filename
            if check_integrity(str(archive), self.original.tgz_md5):
                (beside / archive.name).symlink_to(archive.absolute())
            self.original(str(beside), download=True)
            place = self.root / self.original.base_folder
            place.mkdir(exist_ok=True)
            for file in (beside / place.name).iterdir():
                file.replace(place / file.name)


class CIFAR10(_CIFAR):
    """CIFAR-10 (Krizhevsky, 2009): 10 classes, 50,000 training and 10,000 test images of 32 x 32.

    There is one domain. Files are used only where their checksums are those of the originals.

    Args:
        root: the folder ``cifar-10-batches-py``, or the folder that holds it.
        download: fetch the 163 MiB where they are not there yet. They are unpacked beside and then
            moved into place, so that several processes may do it at once.
        options: the arguments of :class:`~dam_lightning.data.base.ResidentDataModule`.
    """

    title = "CIFAR-10"
    original = torchvision.datasets.CIFAR10
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
    # As in VICO-UoE/DatasetCondensation.
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2023, 0.1994, 0.2010)


class CIFAR100(_CIFAR):
    """CIFAR-100 (Krizhevsky, 2009): 100 classes, 50,000 training and 10,000 test images of 32 x 32.

    Labels are the fine ones. There is one domain. Files are used only where their checksums are
    those of the originals.

    Args:
        root: the folder ``cifar-100-python``, or the folder that holds it.
        download: fetch the 161 MiB where they are not there yet. They are unpacked beside and then
            moved into place, so that several processes may do it at once.
        options: the arguments of :class:`~dam_lightning.data.base.ResidentDataModule`.
    """

    title = "CIFAR-100"
    original = torchvision.datasets.CIFAR100
    class_names = tuple(_FINE_CLASSES.split())
    # As in VICO-UoE/DatasetCondensation.
    mean = (0.5071, 0.4866, 0.4409)
    std = (0.2673, 0.2564, 0.2762)


def _as_split(name: str, source: Any) -> Split:
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    labels: Tensor = torch.tensor(source.targets, dtype=torch.int64)
    paths = [f"{name}/{number:05d}" for number in range(len(labels))]
    return Split(images, labels, torch.zeros_like(labels), paths)
