"""The base methods, each with and without the Domain-Aware Module."""

from dam_lightning.methods.base import Condenser, DAMOptions
from dam_lightning.methods.dm import DM

__all__ = ["DM", "Condenser", "DAMOptions"]
