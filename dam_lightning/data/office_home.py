"""Office-Home."""

from collections.abc import Mapping
from typing import ClassVar

from dam_lightning.data.domain_folders import DomainFoldersWithSplits

__all__ = ["OfficeHome"]

_CLASSES = """
Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles Chair
Clipboards Computer Couch Curtains Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet
Flipflops Flowers Folder Fork Glasses Hammer Helmet Kettle Keyboard Knives Lamp_Shade Laptop
Marker Monitor Mop Mouse Mug Notebook Oven Pan Paper_Clip Pen Pencil Postit_Notes Printer
Push_Pin Radio Refrigerator Ruler Scissors Screwdriver Shelf Sink Sneakers Soda Speaker
Spoon TV Table Telephone ToothBrush Toys Trash_Can Webcam
"""


class OfficeHome(DomainFoldersWithSplits):
    """Office-Home (Venkateswara et al., CVPR 2017): 65 classes in 4 domains, 15,588 images.

    Read from any of the layouts it is passed around in::

        OfficeHomeDataset_10072016/<domain>/<class>/<image>        the authors', with Real World
        office_home/<domain>/<class>/<image>                       DomainBed
        office_home_dg/<domain>/{train,val}/<class>/<image>        Dassl, with real_world

    In the last, ``val`` is the test split. In the others a tenth of each class of each domain is
    drawn for it, and a line says so. Classes are in the order of the authors' folders, whatever
    their spelling (in small letters, ``tv`` would come after ``toys``).

    Arguments are those of :class:`~dam_lightning.data.folders.FolderDataModule`.
    """

    class_names = tuple(_CLASSES.split())
    domain_names = ("Art", "Clipart", "Product", "Real World")
    title = "Office-Home"
    # The one with given splits first, where a folder holds several.
    folder_names = (
        "office_home_dg",
        "office_home",
        "OfficeHomeDataset_10072016",
        "OfficeHome",
        "Office-Home",
    )
    parts: ClassVar[Mapping[str, str]] = {"train": "train", "val": "test"}
    test_share = 0.1
    remedy = (
        "Give as root a folder of the form office_home/<domain>/<class>/<image> (DomainBed; the "
        "authors call it OfficeHomeDataset_10072016) or office_home_dg/<domain>/{train,val}/<class>"
        "/<image> (Dassl), with domains Art, Clipart, Product and Real World, or the folder that "
        "holds it. Office-Home is to be had from "
        "http://hemanthdv.org/OfficeHome-Dataset/, by hand."
    )
