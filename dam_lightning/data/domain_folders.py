"""What datasets for domain generalisation have in common: images in folders by domain and class."""

import gc
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info

from dam_lightning.data.decoding import ListedFile
from dam_lightning.data.folders import FolderDataModule, FolderListing, is_image
from dam_lightning.data.split_lists import read_paths
from dam_lightning.data.splitting import held_out

__all__ = [
    "Cell",
    "DomainFolders",
    "DomainFoldersWithSplits",
    "collector_paused",
    "image_names",
    "listed_names",
    "visible_folders",
]


class Cell(NamedTuple):
    """The images of one class of one domain, or of a part of it."""

    folder: str
    """Relative to the dataset's folder, with forward slashes."""
    label: int
    domain: int
    names: list[str]
    """Of the image files, sorted."""

    def files(self) -> list[ListedFile]:
        """The images, as they are listed."""
        return [ListedFile(f"{self.folder}/{name}", self.label, self.domain) for name in self.names]


class DomainFolders(FolderDataModule):
    """A dataset whose domains and classes are known, and which is complete or refused.

    Names of folders are compared without regard to capitals, spaces, hyphens and underscores; names
    of domains and classes are always those of ``domain_names`` and ``class_names``.
    """

    # Of ImageNet, as usual for domain generalisation.
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    title: ClassVar[str]
    """What the dataset is called."""
    folder_names: ClassVar[tuple[str, ...]]
    """Names that the dataset's folder goes by."""
    inner_names: ClassVar[tuple[str, ...]] = ()
    """Names of a folder in it that may hold those of the domains."""
    spellings: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Other names that folders of a domain or class go by."""
    test_share: ClassVar[float]
    """Of the images of each class of each domain, where the split is drawn by chance."""
    remedy: ClassVar[str]
    """Where to get the dataset, and how its folder must look."""

    def find_domains(self) -> tuple[Path, list[str]]:
        """The folder that holds those of the domains, and their names there, in order.

        Raises:
            FileNotFoundError: a domain is missing, or all are.
            ValueError: there are two folders of one domain.
        """
        best, found = self.find_most_domains()
        missing = [domain for domain in self.domain_names if domain not in found]
        if not missing:
            return best, [found[domain] for domain in self.domain_names]
        if found:
            raise FileNotFoundError(
                f"{self.title} in {best} has no folder of the domain {listed_names(missing)} "
                f"(but of {listed_names(list(found))}). {self.remedy} Images of only some domains "
                "are for ImageFolder."
            )
        raise FileNotFoundError(
            f"No {self.title} in {self.root}. Looked for the folders "
            f"{', '.join(self.domain_names)} in: {', '.join(map(str, self._candidates()))}. "
            f"{self.remedy}"
        )

    def find_most_domains(self) -> tuple[Path, dict[str, str]]:
        """Where most of the domains are, and which folder each is in; the first of equals."""
        found = [
            (folder, self._matched(folder, self.domain_names)) for folder in self._candidates()
        ]
        return max(found, key=lambda pair: len(pair[1]))

    def _candidates(self) -> list[Path]:
        bases = [self.root, *(self.root / name for name in self.folder_names)]
        return [base / inner for base in bases for inner in (".", *self.inner_names)]

    def _matched(self, folder: Path, names: Iterable[str]) -> dict[str, str]:
        """Which folder in ``folder`` each domain or class is in, of those that are there."""
        known = {
            _plain(spelling): name
            for name in names
            for spelling in (name, *self.spellings.get(name, ()))
        }
        found: dict[str, str] = {}
        for entry in visible_folders(folder):
            name = known.get(_plain(entry))
            if name is None:
                continue
            if name in found:
                raise ValueError(
                    f"{folder} has two folders of {name}, {found[name]} and {entry}: remove one"
                )
            found[name] = entry
        return found

    def scan(self, root: Path, domain: int, folder: str) -> list[Cell]:
        """The classes in one folder, in order.

        Args:
            root: the dataset's folder.
            domain: the number of the domain.
            folder: relative to ``root``.

        Raises:
            ValueError: there are images in a folder that is of no class.
        """
        found = self._matched(root / folder, self.class_names)
        known = set(found.values())
        for name in visible_folders(root / folder):
            if name not in known and image_names(root / folder / name):
                raise ValueError(
                    f"{root / folder / name} is of no class of {self.title} "
                    f"({listed_names(self.class_names)}): remove it, or use ImageFolder"
                )
        return [
            Cell(inner, label, domain, image_names(root / inner))
            for label, class_name in enumerate(self.class_names)
            if class_name in found
            for inner in [f"{folder}/{found[class_name]}"]
        ]

    def scan_domains(self, root: Path, folders: Sequence[str]) -> list[Cell]:
        """Every class of every domain, in order.

        Raises:
            FileNotFoundError: a domain has no images of a class.
            ValueError: there are images in a folder that is of no class.
        """
        cells = [
            cell
            for domain, folder in enumerate(folders)
            for cell in self.scan(root, domain, folder)
        ]
        self.check_classes(root, folders, cells)
        return cells

    def check_classes(self, root: Path, folders: Sequence[str], cells: Iterable[Cell]) -> None:
        """Refuse a dataset of which some domain has no images of some class.

        Raises:
            FileNotFoundError: names them.
        """
        filled = {(cell.domain, cell.label) for cell in cells if cell.names}
        lacking = {
            folder: [
                name for label, name in enumerate(self.class_names) if (domain, label) not in filled
            ]
            for domain, folder in enumerate(folders)
        }
        wanting = [
            f"{listed_names(names)} in {root / at}" for at, names in lacking.items() if names
        ]
        if wanting:
            raise FileNotFoundError(
                f"No images of {'; of '.join(wanting)}. {self.title} has images of every class in "
                "every domain: unpack it anew"
            )

    def drawn(self, root: Path, cells: Iterable[Cell], reason: str) -> FolderListing:
        """A split by chance, the same share of each class of each domain.

        Args:
            root: the dataset's folder.
            cells: all of its images.
            reason: why, for the line that says so.
        """
        rank_zero_info(
            f"{reason}: {self.test_share:.0%} of each class of each domain become the test split, "
            f"drawn with split_seed={self.split_seed}."
        )
        listing = FolderListing(root, [], [])
        for cell in cells:
            count = len(cell.names)
            if not count:
                continue
            chosen = held_out(
                torch.full((count,), cell.label),
                torch.full((count,), cell.domain),
                self.test_share,
                self.split_seed,
                "split",
            )
            for file, tested in zip(cell.files(), chosen.tolist(), strict=True):
                (listing.test if tested else listing.train).append(file)
        return listing

    def listed(
        self,
        root: Path,
        cells: Iterable[Cell],
        sources: Mapping[str, Mapping[str, Path]],
        left_out: Collection[str] = (),
    ) -> FolderListing:
        """The split that lists say, in their order, each image once.

        Labels come from the folders: copies of lists are about with wrong labels.

        Args:
            root: the dataset's folder.
            cells: all of its images.
            sources: for the splits ``train`` and ``test`` the list of each domain, whose lines are
                ``<domain>/<class>/<image> <label>``.
            left_out: paths, as in the lists, that may be in them and are not used.

        Raises:
            FileNotFoundError: a listed image is not there.
            ValueError: an image is listed for both splits, or for another domain.
        """
        files: dict[str, ListedFile] = {}
        for cell in cells:
            named = f"{self.domain_names[cell.domain]}/{self.class_names[cell.label]}"
            if cell.folder == named:
                files.update((file.path, file) for file in cell.files())
            else:
                names = (f"{named}/{name}" for name in cell.names)
                files.update(zip(names, cell.files(), strict=True))
        found: dict[str, dict[str, ListedFile]] = {"train": {}, "test": {}}
        repeated: list[str] = []
        for split, lists in sources.items():
            for domain, source in lists.items():
                taken, again = self._read_list(root, domain, source, files, left_out)
                found[split].update(taken)
                repeated += again
        shared = sorted(found["train"].keys() & found["test"].keys())
        folder = next(iter(sources["train"].values())).parent
        if shared:
            kinds = " and the ".join(next(iter(lists.values())).name for lists in sources.values())
            raise ValueError(
                f"{len(shared)} images, such as {shared[0]}, are in both the training and the test "
                f"lists in {folder} ({kinds} ...). Download the lists anew, or remove them to have "
                "a split drawn."
            )
        if repeated:
            rank_zero_info(
                f"{len(repeated)} lines of the lists in {folder}, such as that of {repeated[0]}, "
                "are repeated: each image counts once."
            )
        unlisted = len(files) - len(found["train"]) - len(found["test"])
        if unlisted:
            first = next(path for path in files if not any(path in part for part in found.values()))
            rank_zero_info(
                f"{unlisted} images in {root}, such as {first}, are in none of the lists in "
                f"{folder} and are left out."
            )
        return FolderListing(root, *(list(part.values()) for part in found.values()))

    def _read_list(
        self,
        root: Path,
        domain: str,
        source: Path,
        files: Mapping[str, ListedFile],
        left_out: Collection[str],
    ) -> tuple[dict[str, ListedFile], list[str]]:
        """The images of one list by their paths there, and those that are in it again."""
        listed = read_paths(source)
        foreign = next((path for path in listed if not path.startswith(f"{domain}/")), None)
        if foreign is not None:
            raise ValueError(
                f"{source} lists {foreign}, which is not in the domain {domain}. "
                "Its lines must be '<domain>/<class>/<image> <label>'."
            )
        found = {path: files[path] for path in listed if path in files}
        if len(found) == len(listed):
            return found, []
        counts = Counter(listed)
        repeated = [path for path, count in counts.items() for _ in range(count - 1)]
        missing = [path for path in counts if path not in files and path not in left_out]
        if missing:
            more = f" ({len(missing)} such lines)" if len(missing) > 1 else ""
            raise FileNotFoundError(
                f"{root / missing[0]} is listed in {source} but is not there{more}. "
                f"Unpack {self.title} anew, or remove the line."
            )
        return found, repeated


class DomainFoldersWithSplits(DomainFolders):
    """A dataset that is passed around both with folders for its splits and without.

    The layouts are ``<domain>/<class>/<image>`` and ``<domain>/<part>/<class>/<image>``. Without
    parts, a share of each class of each domain is drawn for the test split, and a line says so.
    """

    parts: ClassVar[Mapping[str, str]]
    """Which split each folder of a part belongs to."""

    def list_files(self) -> FolderListing:
        """Find the images, and split them by their folders or by chance.

        Raises:
            FileNotFoundError: the dataset, a domain, a part or a class is missing.
            ValueError: there are images in a folder that is of no class, or two folders of one
                domain or class.
        """
        root, folders = self.find_domains()
        given = [set(visible_folders(root / folder)) & set(self.parts) for folder in folders]
        if not any(given):
            cells = self.scan_domains(root, folders)
            return self.drawn(
                root, cells, f"No folders {self._named_parts()} in {root / folders[0]}"
            )
        for folder, present in zip(folders, given, strict=True):
            missing = [part for part in self.parts if part not in present]
            if missing:
                raise FileNotFoundError(
                    f"{root / folder} has no folder {listed_names(missing)}: other domains have "
                    f"their images in {self._named_parts()}. {self.remedy}"
                )
        found: dict[str, list[Cell]] = {"train": [], "test": []}
        for domain, folder in enumerate(folders):
            for part, split in self.parts.items():
                found[split] += self.scan(root, domain, f"{folder}/{part}")
        self.check_classes(root, folders, (cell for cells in found.values() for cell in cells))
        return FolderListing(
            root, *([file for cell in cells for file in cell.files()] for cells in found.values())
        )

    def _named_parts(self) -> str:
        return ", ".join(self.parts)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without Python's garbage collector, which would look again and again at what is being listed.

    None of that is garbage; listing half a million files takes twice as long with it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def visible_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; none where there is no such folder.

    Not those that editors and archives leave behind, such as .ipynb_checkpoints and __MACOSX.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith((".", "__")) and entry.is_dir()
            )
    except (FileNotFoundError, NotADirectoryError):
        return []


def image_names(folder: Path) -> list[str]:
    """Names of the image files in a folder, sorted; none where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if is_image(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def listed_names(names: Sequence[str], most: int = 10) -> str:
    """Names for a message, the first of many."""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _plain(name: str) -> str:
    return name.casefold().replace(" ", "").replace("_", "").replace("-", "")
