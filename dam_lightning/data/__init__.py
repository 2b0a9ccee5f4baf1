"""Real data: decoded once, resident, grouped by class and by pseudo-domain."""

from dam_lightning.data.base import ResidentDataModule
from dam_lightning.data.cifar import CIFAR10, CIFAR100
from dam_lightning.data.decoding import ListedFile
from dam_lightning.data.digits import Digits
from dam_lightning.data.domain_net import DomainNet
from dam_lightning.data.folders import FolderDataModule, FolderListing
from dam_lightning.data.groups import GroupedBatch, GroupIndex, Groups
from dam_lightning.data.image_folder import ImageFolder
from dam_lightning.data.office_home import OfficeHome
from dam_lightning.data.pacs import PACS
from dam_lightning.data.resident import Split
from dam_lightning.data.sampling import random_images
from dam_lightning.data.tiny_imagenet import TinyImageNet
from dam_lightning.data.vlcs import VLCS

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "PACS",
    "VLCS",
    "Digits",
    "DomainNet",
    "FolderDataModule",
    "FolderListing",
    "GroupIndex",
    "GroupedBatch",
    "Groups",
    "ImageFolder",
    "ListedFile",
    "OfficeHome",
    "ResidentDataModule",
    "Split",
    "TinyImageNet",
    "random_images",
]
