"""Real images that stand for the training set, chosen class by class by features of a network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dam_lightning.backbones import build_backbone
from dam_lightning.data.sampling import RealImages, check_class_sizes
from dam_lightning.evaluation.recipe import Recipe
from dam_lightning.evaluation.training import train_network
from dam_lightning.functional.coresets import herding, k_center, k_medoids
from dam_lightning.randomness import numpy_generator

__all__ = ["CORESETS", "Selection", "SelectionOptions", "coreset"]

CORESETS = ("herding", "k_center", "k_means")
"""Ways of choosing; see `dam_lightning.functional.coresets`."""

_Kind = Literal["trained", "untrained", "pixels"]


class SelectionOptions(TypedDict, total=False):
    """Any of the fields of `Selection`; what is left out keeps its default."""

    features: _Kind
    epochs: int


@dataclass(frozen=True)
class Selection:
    """By which features a coreset is chosen.

    Attributes:
        features: ``"trained"``: of a network of the recipe's backbone, trained by the recipe on the
            whole training set, as in the baselines of Zhao, Mopuri and Bilen (ICLR 2021);
            ``"untrained"``: of such a network with its initial weights, which costs one look at
            every image; ``"pixels"``: the normalised pixels.
        epochs: of the training. 20 on CIFAR-10 are as many images as the protocol's ten networks
            see at 10 images per class, so that choosing about doubles the time of an evaluation.

    Raises:
        ValueError: if a value is out of its range.
    """

    features: _Kind = "trained"
    epochs: int = 20

    def __post_init__(self) -> None:
        if self.features not in get_args(_Kind):
            raise ValueError(
                f"selection: features must be one of {', '.join(get_args(_Kind))}, "
                f"got {self.features!r}"
            )
        if self.epochs < 1:
            raise ValueError(f"selection: epochs must be at least 1, got {self.epochs}")

    @classmethod
    def of(cls, options: "SelectionOptions | None") -> "Selection":
        """The defaults with some of them replaced.

        Raises:
            ValueError: if there is no such field, a value is out of its range, or ``epochs`` is
                given where nothing is trained.
        """
        given: Mapping[str, Any] = options or {}
        unknown = set(given) - set(SelectionOptions.__annotations__)
        if unknown:
            raise ValueError(f"selection: there is no {', '.join(sorted(unknown))}")
        selection = cls(**given)
        if "epochs" in given and selection.features != "trained":
            raise ValueError(
                f"selection: epochs are of features: trained, not of {selection.features}; leave "
                "them out"
            )
        return selection


def coreset(
    data: Any,
    method: str,
    ipc: int,
    selection: Selection,
    recipe: Recipe,
    seed: int,
    device: torch.device,
) -> Tensor:
    """Choose training images of every class.

    Only the features of one class are in memory at a time.

    Args:
        data: a data module after its ``setup``; its ``train``, ``class_names``, ``mean``, ``std``
            and, where it has one, ``whitening`` are used.
        method: one of `CORESETS`.
        ipc: images per class.
        selection: by which features.
        recipe: of the network that the features are of; its ``epochs`` are not used.
        seed: key of all draws.
        device: where the network is run.

    Returns:
        (num_classes * ipc,) int64 on the CPU, numbers of training images, class by class.

    Raises:
        ValueError: if a class has fewer images, or the network diverged.
    """
    check_class_sizes(data, ipc)
    images, labels = RealImages(data, device), data.train.labels.cpu()
    features = _features(images, labels.to(device), len(data.class_names), selection, recipe, seed)
    chosen = []
    for label in range(len(data.class_names)):
        members = (labels == label).nonzero().flatten()
        with torch.no_grad():
            parts = [features(images[rows]) for rows in torch.split(members, recipe.batch_size)]
        found = torch.cat(parts).float().cpu()
        if not bool(found.isfinite().all()):
            raise ValueError(
                f"the network that {method} chooses by has features that are not finite: lower "
                "recipe.lr, or choose by selection.features untrained or pixels"
            )
        chosen.append(members[_pick(method, found, ipc, seed, label)])
    return torch.cat(chosen)


def _features(
    images: RealImages,
    labels: Tensor,
    num_classes: int,
    selection: Selection,
    recipe: Recipe,
    seed: int,
) -> Callable[[Tensor], Tensor]:
    """Normalised images (N, C, H, W) to features (N, F)."""
    if selection.features == "pixels":
        return lambda pixels: pixels.flatten(1)
    if selection.features == "trained":
        rank_zero_info(
            f"Training a {recipe.backbone} on all {len(images)} training images for "
            f"{selection.epochs} epochs, to choose by its features"
        )
        recipe = replace(recipe, epochs=selection.epochs)
        return train_network(
            images, labels, num_classes, recipe, seed=seed, number=0, stream="selection"
        ).features
    channels, height, width = images.shape[1:]
    network = build_backbone(
        recipe.backbone,
        (channels, height, width),
        num_classes,
        recipe.backbone_args,
        device=images.device,
        seed=seed,
        stream="selection/network",
    )
    network.eval()
    return network.features


def _pick(method: str, features: Tensor, ipc: int, seed: int, label: int) -> Tensor:
    # In double precision, so that rounding decides as little as it can.
    if method == "herding":
        return herding(features.double(), ipc)
    if method == "k_center":
        return k_center(features.double(), ipc)
    start = numpy_generator(seed, "selection/k_means", 0, label).integers(2**32)
    return k_medoids(features, ipc, int(start))
