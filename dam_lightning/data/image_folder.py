"""Anybody's own images, in folders named for classes, or for domains and classes."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from lightning.pytorch.utilities import rank_zero_info

from dam_lightning.data.decoding import ListedFile
from dam_lightning.data.folders import FolderDataModule, FolderListing, is_image
from dam_lightning.data.splitting import check_share, held_out

__all__ = ["ImageFolder"]

Layout = Literal["domain/class", "class"]

_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
"""Which split a folder is, by its name in small letters."""
_TITLES = {"train": "training", "test": "test", "val": "validation"}
_TEST_SHARE = 0.1
_EXPECTED = (
    "Expected <class>/<image> or <domain>/<class>/<image>, or folders train and test (and "
    "perhaps val) that hold either"
)


class ImageFolder(FolderDataModule):
    """Images of one's own, in folders named for what they show.

    Any of these layouts::

        <root>/<class>/<image>                   one domain
        <root>/<domain>/<class>/<image>          several domains
        <root>/{train,test,val}/...              either of these, with given splits

    Names of classes and domains are those of the folders, sorted. A class may be missing in some
    domains, which is reported. Without a folder ``test`` (``testing``) a share of each class of
    each domain is drawn for testing; a folder ``val`` (``valid``, ``validation``) makes the
    validation part. Names of splits may have capitals; ``training`` is ``train`` too.

    Args:
        root: the folder.
        image_size: height and width in pixels that images are resized to.
        layout: ``"domain/class"`` or ``"class"``; below a class, folders may go deeper. None: found
            by how deep the images lie.
        test_list: text file that names the test images, a path relative to ``root`` in each line;
            all others are for training.
        test_share: share of the images that is drawn for testing where neither folders nor a list
            say which. None: a tenth.
        mean: normalisation, of each colour channel, in units of pixels in [0, 1]. The default is
            that of ImageNet.
        std: as ``mean``.
        options: the arguments of :class:`~dam_lightning.data.folders.FolderDataModule`;
            ``split_seed`` is that of the draw for testing too.

    Raises:
        ValueError: an argument is out of range, or contradicts another.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 64,
        layout: Layout | None = None,
        test_list: str | None = None,
        test_share: float | None = None,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        **options: Any,
    ) -> None:
        super().__init__(root, image_size, **options)
        if layout not in (None, "domain/class", "class"):
            raise ValueError(f"layout must be domain/class or class, got {layout!r}")
        if test_list is not None and test_share is not None:
            raise ValueError("test_list names the test images: leave out test_share, or the list")
        if test_share is not None:
            check_share("test_share", test_share)
        finite = all(map(math.isfinite, (*mean, *std)))
        if len(mean) != 3 or len(std) != 3 or not finite or min(std) <= 0:
            raise ValueError(
                f"mean and std need 3 values each, finite and std above 0, got {mean} and {std}"
            )
        self.layout = layout
        self.test_list = test_list
        self.test_share = test_share
        self.mean, self.std = tuple(mean), tuple(std)

    def list_files(self) -> FolderListing:
        """Find the images, and tell the splits apart.

        Raises:
            FileNotFoundError: there are no images, a class has none, or a listed one is missing.
            ValueError: the layout is neither of the two, splits are given twice, or folders named
                like splits are beside others.
        """
        if not self.root.is_dir():
            raise FileNotFoundError(f"There is no folder {self.root}. Give as root one with images")
        images, others = _walk(self.root)
        if others:
            counts = ", ".join(f"{number} {ending}" for ending, number in others.most_common(5))
            rank_zero_info(
                f"{self.root}: left out are {others.total()} files whose names do not end as "
                f"those of images that are read ({counts}{', ...' if len(others) > 5 else ''})."
            )
        parts = self._find_parts(images)
        found = {part: _below(folder, self.root, images) for part, folder in parts.items()}
        if not found["train"]:
            raise FileNotFoundError(f"No images in {parts['train']}. {_EXPECTED}.")
        layout = self.layout or _find_layout(parts["train"], found["train"])
        self._name(layout, parts, found)
        files = {part: self._label(parts[part], found[part], layout) for part in parts}
        if "test" not in files:
            files["train"], files["test"] = self._split(files["train"])
        elif not files["test"]:
            raise FileNotFoundError(
                f"There are no test images in {parts['test']}: add some, or remove the folder to "
                "have a share of the training images drawn"
            )
        self._check(files)
        return FolderListing(self.root, files["train"], files["test"], files.get("val"))

    def _find_parts(self, images: Sequence[str]) -> dict[str, Path]:
        """The folder of each given split; without splits ``train`` is all."""
        filled = {path.partition("/")[0] for path in images if "/" in path}
        named: dict[str, list[str]] = {part: [] for part in _TITLES}
        for name in _visible_folders(self.root):
            part = _PARTS.get(name.lower())
            # Without images, training and test parts are refused later, and no validation is meant.
            if part is not None and (name in filled or part != "val"):
                named[part].append(name)
        likely = {name for names in named.values() for name in names}
        others = sorted(filled - likely)
        if not named["train"] or others:
            # With images right inside they are classes after all: trains, tests.
            inside = [path for path in images if path.partition("/")[0] in likely]
            if len(likely) > 1 and not all(path.count("/") == 1 for path in inside):
                self._refuse_parts(sorted(likely), others)
            return {"train": self.root}
        for part, names in named.items():
            if len(names) > 1:
                raise ValueError(f"{self.root} has several {_TITLES[part]} parts: {_listed(names)}")
        if named["test"] and (self.test_list, self.test_share) != (None, None):
            raise ValueError(
                f"{self.root / named['test'][0]} holds the test images: leave out test_list and "
                "test_share"
            )
        return {part: self.root / names[0] for part, names in named.items() if names}

    def _refuse_parts(self, likely: Sequence[str], others: Sequence[str]) -> NoReturn:
        """Test images among the training images would make every result worthless."""
        remedy = f"If {likely[0]} is no split but a class or domain, give it another name"
        if others:
            raise ValueError(
                f"{self.root} has folders named like splits ({_listed(likely)}) and beside them "
                f"{_listed(others)}. Move {_listed(others)} elsewhere. {remedy}"
            )
        raise ValueError(
            f"{self.root} has folders named like splits ({_listed(likely)}), but none named train. "
            f"Put the training images into one. {remedy}"
        )

    def _name(self, layout: Layout, parts: dict[str, Path], found: dict[str, list[str]]) -> None:
        """Take the names of classes and domains from the folders, empty ones included."""
        classes: set[str] = set()
        domains: set[str] = set()
        for part, folder in parts.items():
            if layout == "class":
                classes.update(_visible_folders(folder))
            else:
                for domain in _visible_folders(folder):
                    inner = _visible_folders(folder / domain)
                    domains.update({domain} if inner else ())
                    classes.update(inner)
            depth = 2 if layout == "class" else 3
            stray = [path for path in found[part] if path.count("/") + 1 < depth]
            if stray:
                raise ValueError(
                    f"{folder / stray[0]} lies outside the folders <{layout.replace('/', '>/<')}>. "
                    "Move it into one or remove it, or give another layout"
                )
        self.class_names = sorted(classes)
        self.domain_names = sorted(domains) or ["all"]
        if len(classes) < 2:
            raise ValueError(
                f"{self.root} has a single class, {self.class_names[0]!r}, if its folders are "
                f"<{layout.replace('/', '>/<')}>. Give layout: class or layout: domain/class if "
                "they are not"
            )

    def _label(self, folder: Path, paths: list[str], layout: Layout) -> list[ListedFile]:
        """Every image with its class and domain, sorted by domain, class and name."""
        prefix = "" if folder == self.root else f"{folder.name}/"
        classes = {name: number for number, name in enumerate(self.class_names)}
        domains = {name: number for number, name in enumerate(self.domain_names)}
        files = []
        for path in paths:
            first, second, *_ = path.split("/")
            label, domain = (first, "all") if layout == "class" else (second, first)
            files.append(ListedFile(prefix + path, classes[label], domains[domain]))
        return sorted(files, key=lambda file: (file.domain, file.label, file.path))

    def _split(self, files: list[ListedFile]) -> tuple[list[ListedFile], list[ListedFile]]:
        """Training and test images, by the list or by chance."""
        if self.test_list is not None:
            chosen = self._read_list(Path(self.test_list).expanduser(), files)
        else:
            share = _TEST_SHARE if self.test_share is None else self.test_share
            labels, domains = torch.tensor([file[1:] for file in files]).unbind(dim=1)
            tested = held_out(labels, domains, share, self.split_seed, "split")
            chosen = {files[position].path for position in tested.nonzero().flatten().tolist()}
            if not chosen:
                raise FileNotFoundError(
                    f"There are no test images: in {self.root} no class has two images in one "
                    "domain, of which one could be held out. Add some, or name test images with "
                    "test_list"
                )
            rank_zero_info(
                f"{share:.0%} of each class of each domain become the test split, drawn with "
                f"split_seed={self.split_seed}."
            )
        train = [file for file in files if file.path not in chosen]
        return train, [file for file in files if file.path in chosen]

    def _read_list(self, source: Path, files: list[ListedFile]) -> set[str]:
        if not source.is_file():
            raise FileNotFoundError(f"There is no file {source}, which test_list names")
        try:
            lines = source.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{source}, which test_list names, is no text in UTF-8 ({error}): save it as such"
            ) from error
        known = {file.path for file in files}
        listed = {self._path_in_list(line, known) for line in lines if line.strip()}
        if not listed:
            raise FileNotFoundError(
                f"There are no test images: {source} lists none. Add some lines, or leave out "
                "test_list"
            )
        missing = sorted(listed - known)
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} images that {source} lists, such as {missing[0]}, are not in "
                f"{self.root}. Its lines must be paths relative to that folder"
            )
        return listed

    def _path_in_list(self, line: str, known: set[str]) -> str:
        """The path that a line of a list means, relative to the root."""
        if line in known:  # a name may have spaces around it, and backslashes
            return line
        path = Path(os.path.normpath(line.strip().replace("\\", "/")))
        for root in (Path(os.path.normpath(self.root.absolute())), self.root.resolve()):
            if path.is_relative_to(root):
                path = path.relative_to(root)
        return path.as_posix()

    def _check(self, files: dict[str, list[ListedFile]]) -> None:
        """Refuse classes without training images; say what there is, and what is missing."""
        cells = {part: {file[1:] for file in listed} for part, listed in files.items()}
        for label, name in enumerate(self.class_names):
            if label not in {cell[0] for cell in cells["train"]}:
                raise FileNotFoundError(
                    f"Class {name!r} has no training images in {self.root}. Add some, or remove "
                    "its folder"
                )
        counts = ", ".join(f"{len(listed)} {part}" for part, listed in files.items())
        rank_zero_info(
            f"{self.root}: {counts} images; classes {_listed(self.class_names)}; "
            f"domains {_listed(self.domain_names)}"
        )
        for part, present in cells.items():
            for domain, domain_name in enumerate(self.domain_names):
                absent = [
                    name
                    for label, name in enumerate(self.class_names)
                    if (label, domain) not in present
                ]
                if absent:
                    where = f"domain {domain_name!r} of the " if len(self.domain_names) > 1 else ""
                    rank_zero_info(f"No images in {where}{part} split of: {_listed(absent)}")


def _listed(names: Sequence[str], most: int = 10) -> str:
    """Names for a message, the first of many."""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _visible(name: str) -> bool:
    """Not what editors and archives leave behind, such as .ipynb_checkpoints and __MACOSX."""
    return not name.startswith((".", "__"))


def _visible_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and _visible(path.name))


def _walk(root: Path) -> tuple[list[str], Counter[str]]:
    """Paths of all images below a folder, relative to it, with forward slashes.

    Returns:
        The paths, and how many other visible files there are, by the ending of their names.
    """
    paths: list[str] = []
    others: Counter[str] = Counter()
    for here, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if _visible(name) and not _returns(Path(here, name))]
        inner = Path(here).relative_to(root)
        paths += [(inner / name).as_posix() for name in names if is_image(name)]
        more = (name for name in names if _visible(name) and not is_image(name))
        others.update(Path(name).suffix.lower() or "without ending" for name in more)
    return paths, others


def _returns(folder: Path) -> bool:
    """Whether it is a link to a folder that it lies in, whose images are then found already."""
    return folder.is_symlink() and folder.resolve() in map(Path.resolve, folder.absolute().parents)


def _below(folder: Path, root: Path, paths: Sequence[str]) -> list[str]:
    """Those of the paths that lie below a folder, relative to it."""
    if folder == root:
        return list(paths)
    prefix = f"{folder.name}/"
    return [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]


def _find_layout(folder: Path, paths: list[str]) -> Layout:
    """How deep the images lie tells what the folders are."""
    by_depth = {path.count("/"): path for path in sorted(paths, reverse=True)}
    layouts: dict[int, Layout] = {1: "class", 2: "domain/class"}
    depth = min(by_depth)
    if len(by_depth) > 1 or depth not in layouts:
        # The lowest and the highest.
        ends = dict.fromkeys((by_depth[depth], by_depth[max(by_depth)]))
        examples = " and ".join(str(folder / path) for path in ends)
        raise ValueError(
            f"{folder} cannot be told apart into domains and classes, because of where {examples} "
            f"{'lie' if len(ends) > 1 else 'lies'}. {_EXPECTED}. If folders go deeper below a "
            "class, give layout: class or layout: domain/class"
        )
    return layouts[depth]
