"""PACS."""

from dam_lightning.data.domain_folders import DomainFolders
from dam_lightning.data.folders import FolderListing
from dam_lightning.data.split_lists import find_lists

__all__ = ["PACS"]

_LISTS = {"train": "train", "test": "crossval"}
"""What the authors call the splits. (Their ``test`` has the images of both.)"""


class PACS(DomainFolders):
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
    title = "PACS"
    folder_names = ("PACS", "pacs")
    inner_names = ("images", "kfold")
    test_share = 0.1
    remedy = (
        "Give as root a folder of the form PACS/<domain>/<class>/<image> (DomainBed), "
        "pacs/images/<domain>/... with pacs/splits (Dassl) or kfold/<domain>/... with pacs_label "
        "(the authors'), or the folder that holds it. PACS is to be had from "
        "https://domaingeneralization.github.io/#data, by hand."
    )

    def list_files(self) -> FolderListing:
        """Find the images, and split them by the authors' lists or by chance.

        Raises:
            FileNotFoundError: the dataset, a domain, a class, a list or a listed image is missing.
            ValueError: the lists contradict themselves or the folders.
        """
        root, folders = self.find_domains()
        cells = self.scan_domains(root, folders)
        names = {
            split: {domain: f"{domain}_{part}_kfold.txt" for domain in self.domain_names}
            for split, part in _LISTS.items()
        }
        lists = find_lists(
            [base / inner for base in (root, root.parent) for inner in ("splits", "pacs_label")],
            [name for listed in names.values() for name in listed.values()],
        )
        if lists is None:
            first = names["train"][self.domain_names[0]]
            return self.drawn(root, cells, f"No lists of {first} and the like beside {root}")
        sources = {
            split: {domain: lists / name for domain, name in listed.items()}
            for split, listed in names.items()
        }
        return self.listed(root, cells, sources)
