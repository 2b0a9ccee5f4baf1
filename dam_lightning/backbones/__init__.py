"""Networks used to condense with and to evaluate on, and how to make them by name."""

from dam_lightning.backbones.base import Backbone
from dam_lightning.backbones.build import build_backbone
from dam_lightning.backbones.convnet import ConvNet

__all__ = ["Backbone", "ConvNet", "build_backbone"]
