"""The base methods, each with and without the Domain-Aware Module."""

from dam_lightning.methods.base import Condenser, DAMOptions
from dam_lightning.methods.dc import DC
from dam_lightning.methods.dm import DM
from dam_lightning.methods.experts import Experts
from dam_lightning.methods.mtt import MTT

__all__ = ["DC", "DM", "MTT", "Condenser", "DAMOptions", "Experts"]
