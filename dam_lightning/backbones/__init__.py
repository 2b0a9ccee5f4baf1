"""Networks used to condense with and to evaluate on, and how to make them by name."""

from dam_lightning.backbones.alexnet import AlexNet
from dam_lightning.backbones.base import Backbone
from dam_lightning.backbones.build import build_backbone
from dam_lightning.backbones.convnet import ConvNet
from dam_lightning.backbones.resnet import ResNet18
from dam_lightning.backbones.vgg import VGG11
from dam_lightning.backbones.vit import ViTSmall, ViTTiny

__all__ = [
    "VGG11",
    "AlexNet",
    "Backbone",
    "ConvNet",
    "ResNet18",
    "ViTSmall",
    "ViTTiny",
    "build_backbone",
]
