"""DomainNet."""

from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.utilities import rank_zero_info

from dam_lightning.data.archives import unpack_folder
from dam_lightning.data.domain_folders import (
    Cell,
    DomainFolders,
    collector_paused,
    listed_names,
    visible_folders,
)
from dam_lightning.data.downloads import Remote, downloaded
from dam_lightning.data.folders import FolderListing
from dam_lightning.data.scratch import made_folder, one_at_a_time
from dam_lightning.data.split_lists import find_lists, read_paths

__all__ = ["DomainNet"]

_SITE = "http://csr.bu.edu/ftp/visda/2019/multi-source"
_CLEANED = 586_575
"""Images of the cleaned version, by http://ai.bu.edu/M3SDA/ and by DomainBed."""
_DUPLICATES = "domain_net_duplicates.txt"
"""DomainBed's list of what is not in the cleaned version."""


class DomainNet(DomainFolders):
    """DomainNet (Peng et al., ICCV 2019): 345 classes in 6 domains, 586,575 images.

    Read from any of the layouts it is passed around in::

        domain_net/<domain>/<class>/<image>                     DomainBed
        domainnet/<domain>/<class>/<image>, domainnet/splits/   Dassl
        DomainNet/<domain>/<class>/<image>, <domain>_train.txt  as unpacked from the authors'
        archives

    The authors' lists, ``<domain>_train.txt`` and ``<domain>_test.txt``, are used where they are
    found in or beside the folder of the domains, or in a folder ``splits`` or ``txt`` there:
        409,832
    training and 176,743 test images, together the cleaned version. Duplicates are in neither; they
    are left out, and counted in a line. These lists are the only published split of single images,
    so results on it can be compared; they leave painting without t-shirts for training and without
    syringes for testing. (The paper's ratio of 0.06 % is that to all 586,575 images.)

    Without lists a fifth of each class of each domain is drawn for the test split, the share that
    DomainBed holds out, and a line says so. The images that DomainBed's
    ``domain_net_duplicates.txt`` lists are left out where it is found in the same places.

    Classes are in the order of their folders' names, sorted with capitals first, as DomainBed has
    them; the numbers in the lists are another order.

    Args:
        root: the dataset's folder, or the folder that holds it.
        download: fetch domains and lists that are not there yet into ``root/domain_net`` (into
            ``root`` where it is so named, or where some domains already are): 17.2 GiB, of which
            each archive is removed when it is unpacked. The authors publish no checksums; those
            used here were recorded by others who fetched the files from the same addresses, and
            agree with each other.
        options: the arguments of :class:`~dam_lightning.data.folders.FolderDataModule`.
    """

    domain_names = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    title = "DomainNet"
    folder_names = ("domain_net", "DomainNet", "domainnet")
    test_share = 0.2
    remedy = (
        "Give as root a folder of the form domain_net/<domain>/<class>/<image>, or the folder that "
        "holds it, have it downloaded there with download: true (17.2 GiB), or fetch it from "
        "http://ai.bu.edu/M3SDA/ (the cleaned version) and unpack it there."
    )
    known_classes: ClassVar[int] = 345
    archives: ClassVar[dict[str, Remote]] = {
        "clipart": Remote(
            f"{_SITE}/groundtruth/clipart.zip", 1270909081, "cd0d8f2d77a4e181449b78ed62bccf1e"
        ),
        "infograph": Remote(
            f"{_SITE}/infograph.zip", 4338659804, "720380b86f9e6ab4805bb38b6bd135f8"
        ),
        "painting": Remote(
            f"{_SITE}/groundtruth/painting.zip", 3679366174, "1ae32cdb4f98fe7ab5eb0a351768abfd"
        ),
        "quickdraw": Remote(
            f"{_SITE}/quickdraw.zip", 459920701, "bdc1b6f09f277da1a263389efe0c7a66"
        ),
        "real": Remote(f"{_SITE}/real.zip", 6062039589, "dcc47055e8935767784b7162e7c7cca6"),
        "sketch": Remote(f"{_SITE}/sketch.zip", 2633992926, "658d8009644040ff7ce30bb2e820850f"),
    }
    lists: ClassVar[dict[str, Remote]] = {
        name: Remote(f"{_SITE}/domainnet/txt/{name}", size, md5)
        for name, size, md5 in (
            ("clipart_train.txt", 1443819, "b4349693a7f9c05c53955725c47ed6cb"),
            ("clipart_test.txt", 628917, "f5ddbcfd657a3acf9d0f7da10db22565"),
            ("infograph_train.txt", 1683098, "379b50054f4ac2018dca4f89421b92d9"),
            ("infograph_test.txt", 728028, "779626b50869edffe8ea6941c3755c71"),
            ("painting_train.txt", 2241901, "7db0e7ca73ad9982f6e1f7f3ef372c0a"),
            ("painting_test.txt", 971888, "232b35dc53f26d414686ae579e38d9b5"),
            ("quickdraw_train.txt", 5164600, "b732ced3939ac8efdd8c0a889dca56cc"),
            ("quickdraw_test.txt", 2213400, "c1a828fdfe216fb109f1c0083a252c6f"),
            ("real_train.txt", 4440944, "8ebf02c2075fadd564705f0dc7cd6291"),
            ("real_test.txt", 1911327, "6098816791c3ebed543c71ffa11b9054"),
            ("sketch_train.txt", 1960222, "1233bd18aa9a8a200bf4cecf1c34ef3e"),
            ("sketch_test.txt", 850581, "d8a222e4672cfd585298aa14d02ea441"),
        )
    }

    def __init__(self, root: str, download: bool = False, **options: Any) -> None:
        super().__init__(root, **options)
        self.download = download

    def prepare_data(self) -> None:
        """Download what is missing, where that is asked for, and decode the images into the cache.

        Raises:
            OSError: a file cannot be fetched or unpacked.
        """
        if self.download:
            self._fetch()
        super().prepare_data()

    @collector_paused()
    def list_files(self) -> FolderListing:
        """Find the images, and split them by the authors' lists or by chance.

        Raises:
            FileNotFoundError: the dataset, a domain, a class, a list or a listed image is missing.
            ValueError: there are not 345 classes, or the lists contradict themselves or the
                folders.
        """
        root, folders = self.find_domains()
        cells = self._scan_all(root, folders)
        duplicates = self._read_duplicates(root)
        if duplicates:
            cells = self._without(cells, duplicates)
        lists = find_lists(_places(root), list(self.lists))
        if lists is not None:
            sources = {
                split: {domain: lists / f"{domain}_{split}.txt" for domain in self.domain_names}
                for split in ("train", "test")
            }
            return self.listed(root, cells, sources, duplicates)
        count = sum(len(cell.names) for cell in cells)
        reason = f"No lists of {next(iter(self.lists))} and the like in {root}"
        if count > _CLEANED:
            reason += (
                f", and {count} images, {count - _CLEANED} more than without duplicates (either "
                f"the lists or DomainBed's {_DUPLICATES} would leave those out)"
            )
        return self.drawn(root, cells, reason)

    def _scan_all(self, root: Path, folders: list[str]) -> list[Cell]:
        """Every class of every domain; sets ``class_names``."""
        named = {name for folder in folders for name in visible_folders(root / folder)}
        self.class_names = sorted(named)
        cells = [
            cell
            for domain, folder in enumerate(folders)
            for cell in self.scan(root, domain, folder)
        ]
        filled = sorted({cell.label for cell in cells if cell.names})
        if len(filled) < len(named):
            # Folders that are empty in every domain are of no class.
            self.class_names = [self.class_names[label] for label in filled]
            place = {label: number for number, label in enumerate(filled)}
            cells = [cell._replace(label=place[cell.label]) for cell in cells if cell.names]
        self.check_classes(root, folders, cells)
        if len(self.class_names) != self.known_classes:
            raise ValueError(
                f"{root} has {len(self.class_names)} classes "
                f"({listed_names(list(self.class_names), 5)}), but DomainNet has "
                f"{self.known_classes}: unpack it anew, or use ImageFolder for some of them"
            )
        return cells

    def _read_duplicates(self, root: Path) -> set[str]:
        """Paths of what DomainBed leaves out, where its list is there."""
        source = next(
            (place / _DUPLICATES for place in _places(root) if (place / _DUPLICATES).is_file()),
            None,
        )
        if source is None:
            return set()
        paths = read_paths(source)
        foreign = next(
            (path for path in paths if path.split("/")[0] not in self.domain_names), None
        )
        if foreign is not None:
            raise ValueError(
                f"{source} lists {foreign}, which is in no domain. Its lines must be "
                "'<domain>/<class>/<image>'; get it from DomainBed, or remove it"
            )
        return set(paths)

    def _without(self, cells: list[Cell], duplicates: set[str]) -> list[Cell]:
        """The cells without duplicates; a line says how many there were."""
        kept = []
        for cell in cells:
            start = f"{self.domain_names[cell.domain]}/{self.class_names[cell.label]}"
            names = [name for name in cell.names if f"{start}/{name}" not in duplicates]
            kept.append(cell._replace(names=names))
        count = sum(len(cell.names) for cell in cells) - sum(len(cell.names) for cell in kept)
        if count:
            rank_zero_info(f"{count} images that {_DUPLICATES} lists are left out.")
        return kept

    def _fetch(self) -> None:
        """Fetch the domains and the lists that are not there."""
        home, found = self.find_most_domains()
        if not found:
            named = self.root.name in self.folder_names
            home = self.root if named else self.root / self.folder_names[0]
        places = _places(home)
        listed = any(all((place / name).is_file() for name in self.lists) for place in places)
        if listed and len(found) == len(self.domain_names):
            return
        with made_folder(home), one_at_a_time(home):
            for domain, remote in self.archives.items():
                # Another process may have fetched it meanwhile.
                if domain not in found and not (home / domain).is_dir():
                    with downloaded(remote, home) as archive:
                        unpack_folder(archive, domain, home)
            if not listed:
                folder = home / "splits"
                folder.mkdir(exist_ok=True)
                for name, remote in self.lists.items():
                    if not (folder / name).is_file():
                        with downloaded(remote, folder) as file:
                            file.replace(folder / name)


def _places(root: Path) -> list[Path]:
    """Where lists may be, by the folder of the domains."""
    return [base / inner for base in (root, root.parent) for inner in (".", "splits", "txt")]
