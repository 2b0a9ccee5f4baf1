"""Dataset condensation with the Domain-Aware Module, as PyTorch Lightning modules."""

from dam_lightning.backbones import ConvNet
from dam_lightning.callbacks import FinalEvaluation
from dam_lightning.condensed_set import CondensedSet
from dam_lightning.dam import DomainAwareModule
from dam_lightning.data import (
    CIFAR10,
    CIFAR100,
    PACS,
    VLCS,
    Digits,
    DomainNet,
    ImageFolder,
    OfficeHome,
    TinyImageNet,
)
from dam_lightning.evaluation import Evaluation
from dam_lightning.methods import DC, DM, MTT, Condenser, Experts
from dam_lightning.version import __version__

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "DC",
    "DM",
    "MTT",
    "PACS",
    "VLCS",
    "CondensedSet",
    "Condenser",
    "ConvNet",
    "Digits",
    "DomainAwareModule",
    "DomainNet",
    "Evaluation",
    "Experts",
    "FinalEvaluation",
    "ImageFolder",
    "OfficeHome",
    "TinyImageNet",
    "__version__",
]
