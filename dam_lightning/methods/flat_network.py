"""`FlatNetwork` by its place among the methods; the class is in `dam_lightning.flat_network`."""

from dam_lightning.flat_network import FlatNetwork

__all__ = ["FlatNetwork"]
