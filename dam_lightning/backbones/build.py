"""Backbones by name, with weights that depend on nothing but a key."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn

from dam_lightning.backbones.alexnet import AlexNet
from dam_lightning.backbones.base import Backbone
from dam_lightning.backbones.convnet import ConvNet
from dam_lightning.backbones.foreign import TimmBackbone, TorchvisionBackbone, nearest
from dam_lightning.backbones.initialisation import FreshWeights
from dam_lightning.backbones.resnet import ResNet18
from dam_lightning.backbones.vgg import VGG11
from dam_lightning.backbones.vit import ViTSmall, ViTTiny
from dam_lightning.randomness import seeded, torch_generator

__all__ = ["backbone_identity", "build_backbone", "check_known", "has_fresh_weights"]

_OWN: dict[str, type[Backbone]] = {
    network.__name__: network for network in (AlexNet, ConvNet, ResNet18, VGG11, ViTSmall, ViTTiny)
}
_DEFAULT_WEIGHTS = (AlexNet, ConvNet, ResNet18, VGG11)
"""Networks whose weights are as their layers draw them."""

_LIBRARIES: dict[str, Callable[..., Backbone]] = {
    "torchvision": TorchvisionBackbone,
    "timm": TimmBackbone,
}


def build_backbone(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    options: Mapping[str, Any] | None = None,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    stream: str = "backbone",
    step: int = 0,
    group: int = 0,
) -> Backbone:
    """Make a freshly initialised backbone.

    Args:
        name: a class of `dam_lightning.backbones`, e.g. ``"ConvNet"``; ``"torchvision:<name>"`` or
            ``"timm:<name>"``, a classification model of these libraries, always with random
            weights; or the dotted path of any class that keeps to `Backbone`, e.g.
            ``"my_package.nets.MyNet"``.
        image_shape: (C, H, W).
        num_classes: number of outputs.
        options: further arguments of the class.
        device: where the weights are made.
        seed: first part of the key that fixes the initial weights, see `dam_lightning.randomness`.
        stream: second part of the key.
        step: third part of the key.
        group: fourth part of the key.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: if there is no such network or it does not take these images or options.
    """
    backbone_class = _find(name)
    key = (seed, stream, step, group)
    with seeded(device, *key), torch.device(device):
        try:
            network = backbone_class(tuple(image_shape), num_classes, **(options or {}))
        except TypeError as error:
            raise ValueError(
                f"backbone {name!r} with options {dict(options or {})}: {error}"
            ) from error
    if not callable(getattr(network, "features", None)):
        raise ValueError(
            f"backbone {name!r} has no method features(images) -> (N, F), which gives the embedding"
        )
    if has_fresh_weights(name) and torch.device(device).type != "meta":
        FreshWeights(network).draw(torch_generator(device, *key))
    return cast(Backbone, network)


def has_fresh_weights(name: str) -> bool:
    """Whether `FreshWeights` draws what `build_backbone` gives networks of this name."""
    return _OWN.get(name) in _DEFAULT_WEIGHTS


def check_known(name: str, option: str) -> None:
    """Refuse a name from a file for which a module would be imported that nobody here asked for.

    Args:
        name: of a backbone.
        option: what a user names it with.

    Raises:
        ValueError: it is the dotted path of a module that is not imported yet.
    """
    module, dot, _ = name.rpartition(".")
    if name in _OWN or ":" in name or not dot or module in sys.modules:
        return
    raise ValueError(
        f"the file asks for the backbone {name}, which is none of this package: if you know it, "
        f"give {option} {name}"
    )


def backbone_identity(name: str) -> object:
    """What tells a name's networks from others: its class, which may be redefined, or the name.

    Raises:
        ValueError: if there is no such class.
    """
    found = _find(name)
    return found if isinstance(found, type) else name


def _find(name: str) -> Callable[..., Any]:
    if name in _OWN:
        return _OWN[name]
    library, colon, model = name.partition(":")
    if colon and library in _LIBRARIES:

        def make(
            image_shape: tuple[int, int, int], num_classes: int, /, **options: Any
        ) -> Backbone:
            return _LIBRARIES[library](image_shape, num_classes, model, **options)

        return make
    module, _, attribute = name.rpartition(".")
    hint = nearest(name, list(_OWN))
    try:
        if module and not colon:
            found = getattr(importlib.import_module(module), attribute)
            # Not whatever else can be called, because names come from files too.
            if isinstance(found, type) and issubclass(found, nn.Module):
                return cast(Callable[..., Any], found)
            hint = " that is a subclass of torch.nn.Module"
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        hint = f" ({error})"
    raise ValueError(
        f"there is no backbone {name!r}{hint}: give a class of dam_lightning.backbones, such as "
        "ConvNet, torchvision:<name>, timm:<name>, or the dotted path of your own"
    )
