"""The AlexNet for small images, one of the networks that condensed sets are tested on."""

from torch import Tensor, nn

from dam_lightning.backbones.base import HeadedBackbone
from dam_lightning.backbones.options import Norm, check_numbers, check_size, norm_layers

__all__ = ["AlexNet"]

_LAYERS = ((5, 2, True), (5, 3, True), (3, 4, False), (3, 3, False), (3, 3, True))
"""Of each convolution: kernel size, channels in halves of the width, whether pooling follows."""


class AlexNet(HeadedBackbone):
    """Five convolutions with three 2x2 max poolings, then a linear layer and no hidden ones.

    ``AlexNet`` of ``networks.py`` in VICO-UoE/DatasetCondensation, which it equals at 32x32; there
    it takes no other size. The embedding is the last map, flattened.

    Args:
        image_shape: (C, H, W), of at least 8x8. One-channel images are padded by two more pixels,
            as in the original, where 28x28 becomes 32x32; they may have 4x4.
        num_classes: number of outputs.
        width: channels of the first convolution; the others have 3/2, 2, 3/2 and 3/2 times as many.
        norm: after each convolution, as of `ConvNet`; the original has none.

    Attributes:
        feature_dim: length of the embedding, F.

    Raises:
        ValueError: if an option is unknown or out of its range, or the image is too small.
    """

    batched_second_derivatives = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        width: int = 128,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        check_numbers(image_shape, num_classes=num_classes, width=width)
        channels, height, breadth = image_shape
        more = 2 if channels == 1 else 0
        check_size("AlexNet", image_shape, 8 - 2 * more)
        layers: list[nn.Module] = []
        for kernel, halves, pooled in _LAYERS:
            layers.append(
                nn.Conv2d(channels, halves * width // 2, kernel, padding=kernel // 2 + more)
            )
            channels, height, breadth = halves * width // 2, height + 2 * more, breadth + 2 * more
            more = 0
            layers.extend([*norm_layers(norm, channels, (height, breadth)), nn.ReLU()])
            if pooled:
                layers.append(nn.MaxPool2d(2))
                height, breadth = height // 2, breadth // 2
        self.layers = nn.Sequential(*layers)
        self.feature_dim = channels * height * breadth
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Embedding of the images: (N, C, H, W) -> (N, F)."""
        embedding: Tensor = self.layers(images)
        return embedding.flatten(1)
