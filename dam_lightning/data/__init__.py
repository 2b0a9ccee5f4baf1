"""Real data: decoded once, resident, grouped by class and by pseudo-domain."""

from dam_lightning.data.base import FolderDataModule, FolderListing, ResidentDataModule
from dam_lightning.data.digits import Digits
from dam_lightning.data.domain_folders import PACS
from dam_lightning.data.groups import GroupedBatch, GroupIndex, Groups
from dam_lightning.data.resident import Split
from dam_lightning.data.sampling import random_images

__all__ = [
    "PACS",
    "Digits",
    "FolderDataModule",
    "FolderListing",
    "GroupIndex",
    "GroupedBatch",
    "Groups",
    "ResidentDataModule",
    "Split",
    "random_images",
]
