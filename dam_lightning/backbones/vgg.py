"""The VGG11 for small images, one of the networks that condensed sets are tested on."""

from torch import Tensor, nn

from dam_lightning.backbones.base import HeadedBackbone
from dam_lightning.backbones.options import Norm, check_numbers, check_size, norm_layers

__all__ = ["VGG11"]

_STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))
"""Channels of the 3x3 convolutions in widths, stage by stage; pooling follows each stage."""


class VGG11(HeadedBackbone):
    """Eight 3x3 convolutions in five stages that 2x2 max poolings end, then a linear layer.

    ``VGG11`` of ``networks.py`` in VICO-UoE/DatasetCondensation, which it equals at 32x32; there it
    takes no other size. The embedding is the mean of the last map over its pixels, of which there
    is a single one at 32x32.

    Args:
        image_shape: (C, H, W), of at least 32x32. One-channel images are padded by two more pixels,
            as in the original; they may have 28x28.
        num_classes: number of outputs.
        width: channels of the first convolution; the last ones have 8 times as many.
        norm: after each convolution, as of `ConvNet`.

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
        width: int = 64,
        norm: Norm = "instancenorm",
    ) -> None:
        super().__init__()
        check_numbers(image_shape, num_classes=num_classes, width=width)
        channels, height, breadth = image_shape
        more = 2 if channels == 1 else 0
        check_size("VGG11", image_shape, 32 - 2 * more)
        layers: list[nn.Module] = []
        for stage in _STAGES:
            for widths in stage:
                layers.append(nn.Conv2d(channels, widths * width, 3, padding=1 + more))
                channels, height, breadth = widths * width, height + 2 * more, breadth + 2 * more
                more = 0
                layers.extend([*norm_layers(norm, channels, (height, breadth)), nn.ReLU()])
            layers.append(nn.MaxPool2d(2))
            height, breadth = height // 2, breadth // 2
        self.layers = nn.Sequential(*layers)
        self.feature_dim = channels
        self.classifier = nn.Linear(channels, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Embedding of the images: (N, C, H, W) -> (N, F)."""
        maps: Tensor = self.layers(images)
        return maps.mean((2, 3))
