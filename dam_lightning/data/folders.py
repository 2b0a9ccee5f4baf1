"""The data module for datasets that are made of image files."""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_info
from torchvision.datasets.folder import IMG_EXTENSIONS

from dam_lightning.data.base import ResidentDataModule
from dam_lightning.data.building import build_splits
from dam_lightning.data.decoding import ListedFile, Resize
from dam_lightning.data.resident import CACHE_VERSION, Split
from dam_lightning.data.split_cache import load_splits, prepare_splits

__all__ = ["FolderDataModule", "FolderListing", "is_image"]

_ENDINGS = (*IMG_EXTENSIONS, ".gif", ".jfif")


class FolderListing(NamedTuple):
    """The image files of a dataset, before any of them is read."""

    root: Path
    """The folder that the paths are relative to."""
    train: list[ListedFile]
    test: list[ListedFile]
    val: list[ListedFile] | None = None
    """Of a dataset with validation images of its own."""


class FolderDataModule(ResidentDataModule):
    """A dataset made of image files, decoded once into a cache.

    A dataset is a subclass that implements :meth:`list_files`. The cache is keyed by the files'
    folder, paths, sizes and times of modification, so that a changed dataset is decoded again.

    Args:
        root: the dataset's folder, or the folder that holds it.
        image_size: height and width in pixels that images are resized to.
        resize: ``"squash"`` images that are no squares, or ``"crop"`` their middle.
        skip_unreadable: leave out images that cannot be read, saying which, instead of refusing.
        options: the arguments of :class:`ResidentDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 64,
        resize: Resize = "squash",
        skip_unreadable: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}")
        if resize not in ("squash", "crop"):
            raise ValueError(f"resize must be squash or crop, got {resize!r}")
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.resize: Resize = resize
        self.skip_unreadable = skip_unreadable
        self._decoded = False

    @abstractmethod
    def list_files(self) -> FolderListing:
        """Find the image files of the splits.

        May set ``class_names`` and ``domain_names`` where the class does not.

        Raises:
            FileNotFoundError: something is not where it should be; names it and the remedy.
        """

    def prepare_data(self) -> None:
        """Decode the images into the cache, where that was not done before."""
        prepare_splits(self._cache_folder, self._build)

    def load_splits(self) -> Mapping[str, Split]:
        """The decoded splits, from the cache; a damaged or missing cache is built again.

        Raises:
            ValueError: unreadable images, which were left out, were all of a split or all training
                images of a class.
        """
        splits, metadata = load_splits(self._cache_folder, self._build)
        self.fingerprint = metadata["fingerprint"]
        self._check_left_out(splits)
        return splits

    @cached_property
    def _listing(self) -> FolderListing:
        return self.list_files()

    @property
    def _listed(self) -> dict[str, list[ListedFile]]:
        """The files of each split that there is."""
        _, train, test, val = self._listing
        return {"train": train, "test": test} | ({} if val is None else {"val": val})

    @cached_property
    def _cache_folder(self) -> Path:
        root = self._listing.root
        digest = blake2b(digest_size=16)
        names = (*self.class_names, *self.domain_names)
        decoding = (self.image_size, self.resize, self.skip_unreadable)
        # Not only relative paths: two datasets may be alike in all that is looked at.
        where = str(root.resolve())
        digest.update(repr((CACHE_VERSION, where, *decoding, *names)).encode())
        for split, files in self._listed.items():
            for file in files:
                line: tuple[object, ...] = (split, *file)
                # What is not there, such as the end of a broken link, is for decode to name.
                with suppress(OSError):
                    status = (root / file.path).stat()
                    line = (*line, status.st_size, status.st_mtime_ns)
                digest.update(repr(line).encode())
        name = f"{type(self).__name__.lower()}-{self.image_size}px-{digest.hexdigest()}"
        return self.cache_dir / name

    def _build(self) -> None:
        root, listed = self._listing.root, self._listed
        count = sum(len(files) for files in listed.values())
        rank_zero_info(f"Decoding {count} images of {root} into {self._cache_folder}")
        build_splits(
            self._cache_folder,
            root,
            listed,
            self.class_names,
            self.image_size,
            self.resize,
            self.skip_unreadable,
        )
        self._decoded = True

    def _check_left_out(self, splits: Mapping[str, Split]) -> None:
        """Say what was left out because it cannot be read; refuse to go on without all of it."""
        listed = self._listed
        count = sum(len(files) for files in listed.values())
        lost = count - sum(len(split) for split in splits.values())
        # Where they were decoded just now they were named too.
        if lost and not self._decoded:
            rank_zero_info(
                f"{lost} of {count} images could not be read and are left out; to have them tried "
                f"again, remove {self._cache_folder}."
            )
        for name, files in listed.items():
            read = set(splits[name].labels.tolist())
            gone = sorted({file.label for file in files} - read)
            if not gone:
                continue
            whose = ", ".join(self.class_names[label] for label in gone) if read else "any class"
            line = f"none of the {name} images of {whose} can be read"
            if name == "train" or not read:
                raise ValueError(f"{line}: replace some of them with intact copies")
            rank_zero_info(f"{line}.")


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image, of the formats that are read."""
    return name.lower().endswith(_ENDINGS) and not name.startswith(".")
