"""VLCS."""

from collections.abc import Mapping
from typing import ClassVar

from dam_lightning.data.domain_folders import DomainFoldersWithSplits

__all__ = ["VLCS"]


class VLCS(DomainFoldersWithSplits):
    """VLCS (Fang et al., ICCV 2013): 5 classes in 4 domains, 10,729 images.

    Read from any of the layouts it is passed around in::

        VLCS/{Caltech101,LabelMe,SUN09,VOC2007}/<class>/<image>             DomainBed
        VLCS/{CALTECH,LABELME,SUN,PASCAL}/<part>/<class>/<image>            Dassl, JiGen

    In the second, the parts ``train`` and ``crossval`` make the 7,510 training images and ``test``
    the 3,219 test images; the part ``full``, which repeats them, is not read. Classes may be
    numbered from 0 there. In the first, 30 % of each class of each domain are drawn for the test
    split, and a line says so.

    Arguments are those of :class:`~dam_lightning.data.folders.FolderDataModule`.
    """

    class_names = ("bird", "car", "chair", "dog", "person")
    domain_names = ("Caltech101", "LabelMe", "SUN09", "VOC2007")
    title = "VLCS"
    folder_names = ("VLCS", "vlcs")
    # Numbers of classes are those of the names in alphabetical order.
    spellings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Caltech101": ("Caltech",),
        "SUN09": ("SUN",),
        "VOC2007": ("PASCAL",),
        "bird": ("0",),
        "car": ("1",),
        "chair": ("2",),
        "dog": ("3",),
        "person": ("4",),
    }
    parts: ClassVar[Mapping[str, str]] = {"train": "train", "crossval": "train", "test": "test"}
    test_share = 0.3
    remedy = (
        "Give as root a folder of the form VLCS/<domain>/<class>/<image> (DomainBed), with domains "
        "Caltech101, LabelMe, SUN09 and VOC2007, or VLCS/<domain>/{train,crossval,test}/<class>/"
        "<image> (Dassl), with domains CALTECH, LABELME, SUN and PASCAL, or the folder that holds "
        "it. VLCS is to be had, by hand, from "
        "https://drive.google.com/uc?id=1skwblH1_okBwxWxmRsp9_qi15hyPpxg8 (DomainBed's copy) or "
        "https://drive.google.com/uc?id=1r0WL5DDqKfSPp9E3tRENwHaXNs1olLZd (Dassl's)."
    )
