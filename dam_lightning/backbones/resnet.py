"""The ResNet18 for small images, one of the networks that condensed sets are tested on."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from dam_lightning.backbones.base import HeadedBackbone
from dam_lightning.backbones.options import (
    Norm,
    check_choice,
    check_numbers,
    check_size,
    norm_layers,
)

__all__ = ["ResNet18"]


class ResNet18(HeadedBackbone):
    """A 3x3 convolution, four stages of two residual blocks each, then a linear layer.

    ``ResNet18`` and ``ResNet18_AP`` of ``networks.py`` in VICO-UoE/DatasetCondensation, which it
    equals at 32x32; there they take no other size. The last three stages begin by halving the maps.

    Args:
        image_shape: (C, H, W); with instance norm of at least 9x9, with ``downsampling: avgpool``
            16x16, without a norm from 1x1 and 8x8.
        num_classes: number of outputs.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        norm: after each convolution, as of `ConvNet`.
        downsampling: what halves the maps: ``"stride"`` of a convolution, where the embedding is
            the mean of the last map over its pixels, or ``"avgpool"``, a 2x2 average pooling after
            it, where the embedding is the last map, flattened (the original's ``_AP``).

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
        downsampling: Literal["stride", "avgpool"] = "stride",
    ) -> None:
        super().__init__()
        check_numbers(image_shape, num_classes=num_classes, width=width)
        check_choice("downsampling", downsampling, ["stride", "avgpool"])
        self._flatten = downsampling == "avgpool"
        if self._flatten:
            check_size("ResNet18 with downsampling avgpool", image_shape, 8)
        size = (image_shape[1], image_shape[2])
        blocks: list[nn.Module] = [
            nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False),
            *norm_layers(norm, width, size),
            nn.ReLU(),
        ]
        channels = width
        for stage, widths in enumerate((1, 2, 4, 8)):
            for number in range(2):
                halve = stage > 0 and number == 0
                block = _Block(channels, widths * width, size, halve, norm, self._flatten)
                blocks.append(block)
                channels, size = widths * width, block.size
        if norm == "instancenorm" and size == (1, 1):
            raise ValueError(
                f"images of {image_shape[1]}x{image_shape[2]} are too small for ResNet18 with norm "
                "instancenorm: it makes maps of one pixel 0, as the last ones are; use larger "
                "images or norm groupnorm"
            )
        self.blocks = nn.Sequential(*blocks)
        self.feature_dim = channels * size[0] * size[1] if self._flatten else channels
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Embedding of the images: (N, C, H, W) -> (N, F)."""
        maps: Tensor = self.blocks(images)
        return maps.flatten(1) if self._flatten else maps.mean((2, 3))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them: (N, in, H, W) -> (N, channels, *size)."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        in_size: tuple[int, int],
        halve: bool,
        norm: Norm,
        pooled: bool,
    ) -> None:
        super().__init__()
        stride = 2 if halve and not pooled else 1
        between = self.size = _halved(in_size, upwards=True) if stride == 2 else in_size
        pooling: list[nn.Module] = []
        if halve and pooled:
            pooling = [nn.AvgPool2d(2)]
            self.size = _halved(in_size, upwards=False)
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
            *norm_layers(norm, channels, between),
            nn.ReLU(),
            *pooling,
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            *norm_layers(norm, channels, self.size),
        )
        self.shortcut = nn.Sequential()
        if halve:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                *pooling,
                *norm_layers(norm, channels, self.size),
            )

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.residual(maps) + self.shortcut(maps))


def _halved(size: tuple[int, int], *, upwards: bool) -> tuple[int, int]:
    """Half of a size; odd numbers are rounded up by a strided convolution, down by pooling."""
    return (size[0] + upwards) // 2, (size[1] + upwards) // 2
