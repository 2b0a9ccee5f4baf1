"""What a network must offer to condense with and to evaluate on."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

__all__ = ["Backbone", "HeadedBackbone"]


class Backbone(nn.Module, ABC):
    """A classifier with an embedding.

    Its constructor takes ``image_shape`` (C, H, W) and ``num_classes``, then options of its own.
    Other modules with such a constructor and a method ``features`` serve as well.

    Attributes:
        batched_second_derivatives: whether ``torch.func.vmap`` of its gradients can be
            differentiated once more, so that `DC` may take groups together. Of what PyTorch's own
            layer and instance norms compute that is wrong, without a word; hence False unless a
            network is known to be right.
    """

    batched_second_derivatives = False

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Embedding of the images, which distribution matching compares: (N, C, H, W) -> (N, F)."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Class scores of the images: (N, C, H, W) -> (N, num_classes)."""


class HeadedBackbone(Backbone):
    """A backbone whose scores are those that its ``classifier`` gives to its embedding."""

    classifier: nn.Module
    """From the embedding to the scores: (N, F) -> (N, num_classes)."""

    def forward(self, images: Tensor) -> Tensor:
        """Class scores of the images: (N, C, H, W) -> (N, num_classes)."""
        scores: Tensor = self.classifier(self.features(images))
        return scores
