"""Backbones that cannot be computed side by side, each for a reason of its own."""

import torch
from torch import Tensor, nn

from dam_lightning.backbones.base import HeadedBackbone

__all__ = ["REASONS"]


class Small(HeadedBackbone):
    """A linear layer; could be computed side by side."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(image_shape[0], 5)
        self.classifier = nn.Linear(5, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.hidden(images.mean(dim=(2, 3))).sigmoid()


class Normalising(Small):
    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(image_shape, num_classes)
        self.norm = nn.BatchNorm1d(5)

    def features(self, images: Tensor) -> Tensor:
        return self.norm(super().features(images))


class Dropping(Small):
    def features(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(super().features(images), 0.5, self.training)


class Remembering(Small):
    """Keeps a mean over what it was trained on, and uses it."""

    mean: Tensor

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(image_shape, num_classes)
        self.register_buffer("mean", torch.zeros(5))

    def features(self, images: Tensor) -> Tensor:
        found = super().features(images)
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(found.mean(dim=0), alpha=0.1)
        return found - self.mean


class Comparing(Small):
    """An image's features depend on the others of its batch."""

    def features(self, images: Tensor) -> Tensor:
        found = super().features(images)
        return found - found.mean(dim=0)


class Frozen(Small):
    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(image_shape, num_classes)
        self.hidden.requires_grad_(False)


class Looking(Small):
    """Decides by what it sees: right side by side never, but in pieces."""

    def features(self, images: Tensor) -> Tensor:
        found = super().features(images)
        return found if bool(self.hidden.weight.sum() > 1e9) else 2 * found


REASONS = (Normalising, Dropping, Remembering, Comparing, Frozen)
