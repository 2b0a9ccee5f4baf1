"""Tiny ImageNet."""

from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.utilities import rank_zero_info

from dam_lightning.data.archives import unpack_folder
from dam_lightning.data.decoding import ListedFile
from dam_lightning.data.domain_folders import image_names, listed_names, visible_folders
from dam_lightning.data.downloads import Remote, downloaded
from dam_lightning.data.folders import FolderDataModule, FolderListing
from dam_lightning.data.scratch import made_folder, one_at_a_time

__all__ = ["TinyImageNet"]

_FOLDER = "tiny-imagenet-200"


class TinyImageNet(FolderDataModule):
    """Tiny ImageNet (Le and Yang, 2015): 200 classes, 100,000 training and 10,000 test images.

    Images are 64 x 64; some are grey. There is one domain. The layout is the official one, or one
    with the validation images sorted into folders of classes::

        tiny-imagenet-200/wnids.txt
        tiny-imagenet-200/train/<wnid>/images/<image>          or train/<wnid>/<image>
        tiny-imagenet-200/val/images/<image>, val/val_annotations.txt
        tiny-imagenet-200/val/<wnid>/<image>                   or val/<wnid>/images/<image>
        tiny-imagenet-200/val/images/<wnid>/<image>

    The validation images are tested on, as the paper and those before it do; the official test
    images have no labels. Classes are numbered in the order of their sorted WordNet numbers
    (``wnid``), as torchvision's ``ImageFolder`` does, and named by them: they are unique, safe as
    names of folders and in every copy, which ``words.txt`` is not.

    Args:
        root: the folder ``tiny-imagenet-200``, or the folder that holds it.
        download: fetch the 237 MiB where there is no such folder yet.
        options: the arguments of :class:`~dam_lightning.data.folders.FolderDataModule`.
    """

    domain_names = ("all",)
    # As in VICO-UoE/DatasetCondensation.
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    known_classes: ClassVar[int] = 200
    archive: ClassVar[Remote] = Remote(
        f"http://cs231n.stanford.edu/{_FOLDER}.zip",
        248_100_043,
        "90528d7ca1a48142e341f4ef8d21d0de",
    )

    def __init__(self, root: str, download: bool = True, **options: Any) -> None:
        super().__init__(root, **options)
        self.download = download

    def prepare_data(self) -> None:
        """Download the dataset and decode it into the cache, where that was not done before.

        Raises:
            OSError: it cannot be fetched or unpacked.
        """
        if self.download and not self._is_there():
            self._fetch()
        super().prepare_data()

    def list_files(self) -> FolderListing:
        """Find the images.

        Raises:
            FileNotFoundError: the dataset, a class, the annotations or an annotated image is
                missing.
            ValueError: the annotations contradict themselves, or classes are not those of
                wnids.txt.
        """
        folder = next((place for place in self._places() if (place / "train").is_dir()), None)
        if folder is None:
            raise FileNotFoundError(
                f"No Tiny ImageNet in {self.root}. Looked for a folder train in: "
                f"{', '.join(map(str, self._places()))}. Give as root the folder {_FOLDER} or the "
                "folder that holds it, have it downloaded there with download: true, or fetch "
                f"{self.archive.url} and unpack it there."
            )
        self.class_names = _class_names(folder, self.known_classes)
        train = []
        for label, wnid in enumerate(self.class_names):
            train += _labelled(_images(folder, f"train/{wnid}"), label)
        return FolderListing(folder, train, _validation(folder, self.class_names))

    def _places(self) -> list[Path]:
        names = (_FOLDER, "tiny-imagenet", "tiny_imagenet", "TinyImageNet")
        return [self.root, *(self.root / name for name in names)]

    def _is_there(self) -> bool:
        return any((place / "train").is_dir() for place in self._places())

    def _fetch(self) -> None:
        home = self.root.parent if self.root.name == _FOLDER else self.root
        place = home / _FOLDER
        if place.is_dir() and any(place.iterdir()):
            raise FileNotFoundError(
                f"{place} has no folder train: remove it to have Tiny ImageNet downloaded anew"
            )
        with made_folder(home), one_at_a_time(home):
            # Another process may have fetched it meanwhile.
            if not self._is_there():
                with downloaded(self.archive, home) as archive:
                    unpack_folder(archive, _FOLDER, home)


def _class_names(folder: Path, count: int) -> list[str]:
    """Names of the folders in ``train``, which must be those that ``wnids.txt`` lists."""
    found = visible_folders(folder / "train")
    source = folder / "wnids.txt"
    if source.is_file():
        listed = set(source.read_text(encoding="utf-8").split())
        if listed != set(found):
            missing = sorted(listed - set(found))
            more = sorted(set(found) - listed)
            differences = [f"there is no folder {listed_names(missing, 5)}"] * bool(missing)
            differences += [f"{listed_names(more, 5)} is not listed"] * bool(more)
            raise ValueError(
                f"the folders in {folder / 'train'} are not those that {source} lists: "
                f"{', and '.join(differences)}. Unpack Tiny ImageNet anew"
            )
    if len(found) != count:
        raise ValueError(
            f"{folder / 'train'} has {len(found)} classes, but Tiny ImageNet has {count}: unpack "
            "it anew, or use ImageFolder for some of them"
        )
    return found


def _images(folder: Path, inner: str) -> list[str]:
    """Paths of the images of one class, which lie in its folder or in ``images`` there.

    Raises:
        FileNotFoundError: there are none.
    """
    for place in (inner, f"{inner}/images"):
        names = image_names(folder / place)
        if names:
            return [f"{place}/{name}" for name in names]
    raise FileNotFoundError(f"No images in {folder / inner}: unpack Tiny ImageNet anew")


def _labelled(paths: list[str], label: int) -> list[ListedFile]:
    return [ListedFile(path, label, 0) for path in paths]


def _validation(folder: Path, wnids: list[str]) -> list[ListedFile]:
    """The validation images, by folders of classes or by the annotations."""
    flat = image_names(folder / "val" / "images")
    for inner in ("val", "val/images"):
        sorted_into = set(visible_folders(folder / inner)) & set(wnids)
        if not sorted_into:
            continue
        if flat:
            raise ValueError(
                f"{folder / 'val'} is half sorted: {len(flat)} images are still in its folder "
                f"images, beside folders of {len(sorted_into)} classes. Unpack it anew"
            )
        listed = []
        for label, wnid in enumerate(wnids):
            listed += _labelled(_images(folder, f"{inner}/{wnid}"), label)
        return listed
    if not flat:
        raise FileNotFoundError(f"No images in {folder / 'val'}: unpack Tiny ImageNet anew")
    return _annotated(folder, set(flat), {wnid: label for label, wnid in enumerate(wnids)})


def _annotated(folder: Path, names: set[str], labels: dict[str, int]) -> list[ListedFile]:
    """The images of the flat folder, in the order of the annotations."""
    source = folder / "val" / "val_annotations.txt"
    if not source.is_file():
        raise FileNotFoundError(
            f"There is no {source}, which says what the images in {folder / 'val' / 'images'} are: "
            "unpack Tiny ImageNet anew, or sort them into folders val/<wnid>"
        )
    found: dict[str, int] = {}
    repeated = 0
    for line in source.read_text(encoding="utf-8").splitlines():
        # After these two come four numbers of a box.
        name, wnid, *_ = [*line.split(), "", ""]
        if not name:
            continue
        if wnid not in labels:
            raise ValueError(
                f"{source} says that {name} is of the class {wnid!r}, which is none of Tiny "
                "ImageNet's: unpack it anew"
            )
        if name not in names:
            raise FileNotFoundError(
                f"{folder / 'val' / 'images' / name} is listed in {source} but is not there: "
                "unpack Tiny ImageNet anew, or remove the line"
            )
        if found.setdefault(name, labels[wnid]) != labels[wnid]:
            raise ValueError(f"{source} lists {name} with two classes: unpack Tiny ImageNet anew")
        repeated += 1
    repeated -= len(found)
    if repeated:
        rank_zero_info(f"{repeated} lines of {source} are repeated: each image counts once.")
    if len(names) > len(found):
        rank_zero_info(
            f"{len(names) - len(found)} images in {folder / 'val' / 'images'} are not listed in "
            f"{source} and are left out."
        )
    return [ListedFile(f"val/images/{name}", label, 0) for name, label in found.items()]
