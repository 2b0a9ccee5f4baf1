"""Networks of torchvision and timm as backbones, always with random weights."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dam_lightning.backbones.base import Backbone, HeadedBackbone
from dam_lightning.backbones.options import check_numbers

__all__ = ["TimmBackbone", "TorchvisionBackbone", "nearest"]

_WEIGHTS = ("weights", "pretrained", "pretrained_cfg", "checkpoint_path")
"""Options by which the libraries load weights."""
_ONE_HEAD = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
"""Options of the torchvision models that otherwise give the scores of several heads."""


class _Foreign(Backbone):
    """What wrappers of networks that know no refusals of their own have in common."""

    def _probe(self, full_name: str, image_shape: tuple[int, int, int]) -> int:
        """Show the network two images; returns the length of the embedding.

        Raises:
            ValueError: if the network fails on them.
        """
        self.eval()
        with _told(full_name, image_shape), torch.no_grad():
            length = self.features(torch.zeros(2, *image_shape)).shape[1]
        self.train()
        return length


class TorchvisionBackbone(_Foreign, HeadedBackbone):
    """A classification model of torchvision, e.g. ``torchvision:resnet18``.

    ``torchvision.models.get_model`` without weights. The embedding is what the last linear layer
    takes. Attention can be differentiated twice.

    Args:
        image_shape: (C, H, W); C must be 3. Models for one image size are made for (H, W).
        num_classes: number of outputs.
        name: of the model.
        **options: of the model.

    Attributes:
        feature_dim: length of the embedding, F.

    Raises:
        ValueError: if there is no such model, it has no linear layer at its end, weights are asked
            for, or it takes neither these images nor these options.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, name: str, **options: Any
    ) -> None:
        super().__init__()
        full_name = f"torchvision:{name}"
        check_numbers(image_shape, num_classes=num_classes)
        # Of this module only: the others segment, detect or take videos, and some of them load
        # the weights of a part if not told otherwise.
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise ValueError(f"there is no backbone {full_name!r}{nearest(name, known)}")
        _refuse_weights(full_name, options)
        channels, height, width = image_shape
        if channels != 3:
            raise ValueError(
                f"{full_name} takes images of 3 channels, got {channels}; use a network of timm or "
                "of this package, which take any"
            )
        sizes: dict[str, Any] = {}
        if name.startswith("maxvit"):
            sizes = {"input_size": (height, width)}
        elif name.startswith("vit"):
            if height != width:
                raise ValueError(
                    f"{full_name} takes square images, got {height}x{width}; use ViTTiny or a "
                    "network of timm"
                )
            sizes = {"image_size": height}

        with _told(full_name, image_shape):
            # Arguments given here and in the options too are a TypeError.
            network = torchvision.models.get_model(
                name,
                weights=None,
                num_classes=num_classes,
                **sizes,
                **_ONE_HEAD.get(name, {}),
                **options,
            )
        linear = [(key, m) for key, m in network.named_modules() if isinstance(m, nn.Linear)]
        if not linear or linear[-1][1].out_features != num_classes:
            raise ValueError(
                f"{full_name} does not end with a linear layer, whose input would be the "
                "embedding; use another network"
            )
        key, classifier = linear[-1]
        parent, _, attribute = key.rpartition(".")
        setattr(network.get_submodule(parent), attribute, nn.Identity())
        self.network, self.classifier = network, classifier
        self.feature_dim = self._probe(full_name, image_shape)

    def features(self, images: Tensor) -> Tensor:
        """Embedding of the images: (N, 3, H, W) -> (N, F)."""
        with sdpa_kernel(SDPBackend.MATH):
            embedding: Tensor = self.network(images)
        return embedding


class TimmBackbone(_Foreign):
    """A model of timm, e.g. ``timm:resnet18``.

    ``timm.create_model`` without weights. The embedding is what the model gives before its logits.
    Attention can be differentiated twice.

    Args:
        image_shape: (C, H, W). Models for one image size are made for (H, W).
        num_classes: number of outputs.
        name: of the model.
        **options: of the model.

    Attributes:
        feature_dim: length of the embedding, F.

    Raises:
        ValueError: if timm is not installed, there is no such model, weights are asked for, or it
            takes neither these images nor these options.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, name: str, **options: Any
    ) -> None:
        super().__init__()
        full_name = f"timm:{name}"
        check_numbers(image_shape, num_classes=num_classes)
        try:
            timm = importlib.import_module("timm")
        except ImportError as error:
            raise ValueError(
                f'backbone {full_name!r} needs timm: pip install "dam-lightning[timm]"'
            ) from error
        # Names of a hub, which would have their settings downloaded, are not among these.
        if not timm.is_model(name):
            raise ValueError(
                f"there is no backbone {full_name!r}{nearest(name, timm.list_models())}"
            )
        _refuse_weights(full_name, options)

        given = {"pretrained": False, "num_classes": num_classes, "in_chans": image_shape[0]}
        sizes = {} if "img_size" in options else {"img_size": tuple(image_shape[1:])}
        with _told(full_name, image_shape):
            # Arguments given here and in the options too are a TypeError.
            try:
                network = timm.create_model(name, **given, **sizes, **options)
            except TypeError as error:
                # Only the models for one image size have this argument.
                if not sizes or "img_size" not in str(error):
                    raise
                network = timm.create_model(name, **given, **options)
        self.network: Any = network
        self.feature_dim = self._probe(full_name, image_shape)

    def features(self, images: Tensor) -> Tensor:
        """Embedding of the images: (N, C, H, W) -> (N, F)."""
        with sdpa_kernel(SDPBackend.MATH):
            maps = self.network.forward_features(images)
            embedding: Tensor = self.network.forward_head(maps, pre_logits=True)
        return embedding.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores of the images: (N, C, H, W) -> (N, num_classes)."""
        with sdpa_kernel(SDPBackend.MATH):
            scores: Tensor = self.network(images)
        return scores


def nearest(name: str, known: list[str]) -> str:
    """The end of a refusal: known names that look like one that is not; empty if none does."""
    lower = {each.lower(): each for each in known}
    matches = [lower[match] for match in get_close_matches(name.lower(), lower)]
    return f"; the nearest names are {', '.join(matches)}" if matches else ""


def _refuse_weights(full_name: str, options: Mapping[str, Any]) -> None:
    for option in _WEIGHTS:
        if options.get(option):
            raise ValueError(
                f"{full_name}: backbones begin with random weights; leave out {option}"
            )


@contextmanager
def _told(full_name: str, image_shape: tuple[int, int, int]) -> Iterator[None]:
    """Turn whatever a foreign network raises into a ValueError that names the network."""
    channels, height, width = image_shape
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"backbone {full_name!r} with these options does not take images of "
            f"{channels}x{height}x{width} ({type(error).__name__}: {error}); check the options, "
            "or use images of another size"
        ) from error
