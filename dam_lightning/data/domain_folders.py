"""Datasets for domain generalisation: image folders by domain and class."""

from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info

from dam_lightning.data.decoding import ListedFile
from dam_lightning.data.folders import FolderDataModule, FolderListing, is_image
from dam_lightning.data.splitting import held_out

__all__ = ["PACS"]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_TEST_SHARE = 0.1


class PACS(FolderDataModule):
    """PACS (Li et al., ICCV 2017): 7 classes in 4 domains, 9,991 images.

    Read from any of the layouts it is passed around in::

        PACS/<domain>/<class>/<image>                         DomainBed
        pacs/images/<domain>/<class>/<image>, pacs/splits/    Dassl
        kfold/<domain>/<class>/<image>, pacs_label/           the authors'

    The authors' lists, ``<domain>_train_kfold.txt`` and ``<domain>_crossval_kfold.txt``, are used
    where they are found in a folder ``splits`` or ``pacs_label`` in or beside the folder of the
    domains: the first make the 8,977 training images, the second the 1,014 test images. (The
    authors' ``test`` lists hold both and are not read.) Without lists a tenth of each class of each
    domain is drawn for the test split, and a line says so.

    Arguments are those of :class:`~dam_lightning.data.folders.FolderDataModule`.
    """

    class_names = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    domain_names = ("art_painting", "cartoon", "photo", "sketch")
    mean = _IMAGENET_MEAN
    std = _IMAGENET_STD

    def list_files(self) -> FolderListing:
        """Find the images, and split them by the authors' lists or by chance.

        Raises:
            FileNotFoundError: the dataset, a class, a list or a listed image is missing.
            ValueError: the lists contradict themselves or the folders.
        """
        images = self._find_images()
        files = self._scan(images)
        lists = self._find_lists(images)
        if lists is None:
            rank_zero_info(
                f"No lists of {self.domain_names[0]}_train_kfold.txt and the like beside {images}: "
                f"{_TEST_SHARE:.0%} of each class of each domain become the test split, drawn with "
                f"split_seed={self.split_seed}."
            )
            return FolderListing(images, *self._split_by_chance(files))
        train = self._read_lists(lists, "train", images, files)
        test = self._read_lists(lists, "crossval", images, files)
        shared = sorted({file.path for file in train} & {file.path for file in test})
        if shared:
            raise ValueError(
                f"{len(shared)} images, such as {shared[0]}, are in both the train and the "
                f"crossval lists in {lists}. Download the lists anew, or remove them to have a "
                "split drawn."
            )
        return FolderListing(images, train, test)

    def _find_images(self) -> Path:
        """The folder that holds the domains' folders."""
        looked = [
            base / inner
            for base in (self.root, self.root / "PACS", self.root / "pacs")
            for inner in (".", "images", "kfold")
        ]
        for folder in looked:
            if all((folder / domain).is_dir() for domain in self.domain_names):
                return folder
        raise FileNotFoundError(
            f"No PACS in {self.root}. Looked for the folders {', '.join(self.domain_names)} in: "
            f"{', '.join(map(str, looked))}. Give as root a folder of the form "
            "PACS/<domain>/<class>/<image> (DomainBed), pacs/images/<domain>/... with pacs/splits "
            "(Dassl) or kfold/<domain>/... with pacs_label (the authors'), or the folder that "
            "holds it."
        )

    def _scan(self, images: Path) -> dict[str, ListedFile]:
        """Every image by its path, domain by domain and class by class, sorted by name."""
        files: dict[str, ListedFile] = {}
        for domain, domain_name in enumerate(self.domain_names):
            for label, class_name in enumerate(self.class_names):
                cell = images / domain_name / class_name
                names = _image_names(cell)
                if not names:
                    raise FileNotFoundError(
                        f"No images in {cell}. PACS has images of every class "
                        f"({', '.join(self.class_names)}) in every domain; unpack it anew."
                    )
                for name in names:
                    path = f"{domain_name}/{class_name}/{name}"
                    files[path] = ListedFile(path, label, domain)
        return files

    def _find_lists(self, images: Path) -> Path | None:
        """The folder of the authors' lists, or None where there is not one of them."""
        wanted = [
            f"{domain}_{part}_kfold.txt"
            for domain in self.domain_names
            for part in ("train", "crossval")
        ]
        for folder in (
            base / inner for base in (images, images.parent) for inner in ("splits", "pacs_label")
        ):
            missing = [name for name in wanted if not (folder / name).is_file()]
            if not missing:
                return folder
            if len(missing) < len(wanted):
                raise FileNotFoundError(
                    f"{folder} has some of the authors' lists, but not {', '.join(missing)}. "
                    "Add these, or remove the others to have a split drawn."
                )
        return None

    def _read_lists(
        self, lists: Path, part: str, images: Path, files: dict[str, ListedFile]
    ) -> list[ListedFile]:
        """The images of one part in the lists' order, each once."""
        found: dict[str, ListedFile] = {}
        for domain in self.domain_names:
            source = lists / f"{domain}_{part}_kfold.txt"
            for path in _listed_paths(source):
                if not path.startswith(f"{domain}/"):
                    raise ValueError(
                        f"{source} lists {path}, which is not in the domain {domain}. "
                        "Its lines must be '<domain>/<class>/<image> <label>'."
                    )
                if path not in files:
                    raise FileNotFoundError(
                        f"{images / path} is listed in {source} but is not there. "
                        "Unpack PACS anew, or remove the line."
                    )
                # The label comes from the folder: copies of the lists are about with wrong labels
                # and with lines that occur twice.
                found[path] = files[path]
        return list(found.values())

    def _split_by_chance(
        self, files: dict[str, ListedFile]
    ) -> tuple[list[ListedFile], list[ListedFile]]:
        """Training and test images: a tenth of each class of each domain is tested on."""
        listed = list(files.values())
        labels, domains = torch.tensor([file[1:] for file in listed]).unbind(dim=1)
        tested = held_out(labels, domains, _TEST_SHARE, self.split_seed, "split").tolist()
        return (
            [file for file, chosen in zip(listed, tested, strict=True) if not chosen],
            [file for file, chosen in zip(listed, tested, strict=True) if chosen],
        )


def _image_names(folder: Path) -> list[str]:
    """Names of the image files in a folder, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if is_image(path.name))


def _listed_paths(source: Path) -> Iterator[str]:
    """Paths in a list whose lines are a path, a space and a label."""
    for line in source.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield line.rsplit(maxsplit=1)[0].strip().replace("\\", "/")
