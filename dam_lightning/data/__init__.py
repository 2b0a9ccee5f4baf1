"""Real data: decoded once, resident, grouped by class and by pseudo-domain."""

from dam_lightning.data.base import ResidentDataModule
from dam_lightning.data.cifar import CIFAR10
from dam_lightning.data.decoding import ListedFile
from dam_lightning.data.digits import Digits
from dam_lightning.data.domain_folders import PACS
from dam_lightning.data.folders import FolderDataModule, FolderListing
from dam_lightning.data.groups import GroupedBatch, GroupIndex, Groups
from dam_lightning.data.image_folder import ImageFolder
from dam_lightning.data.resident import Split
from dam_lightning.data.sampling import random_images

__all__ = [
    "CIFAR10",
    "PACS",
    "Digits",
    "FolderDataModule",
    "FolderListing",
    "GroupIndex",
    "GroupedBatch",
    "Groups",
    "ImageFolder",
    "ListedFile",
    "ResidentDataModule",
    "Split",
    "random_images",
]
