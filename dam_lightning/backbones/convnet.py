"""The ConvNet on which dataset condensation is usually done."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from dam_lightning.backbones.base import HeadedBackbone
from dam_lightning.backbones.options import Norm, check_choice, check_numbers, norm_layers

__all__ = ["ConvNet"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": lambda: nn.LeakyReLU(negative_slope=0.01),
    "sigmoid": nn.Sigmoid,
    "swish": nn.SiLU,
}
_POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "avgpool": lambda: nn.AvgPool2d(2),
    "maxpool": lambda: nn.MaxPool2d(2),
}

_LARGE = 64
"""Shorter side in pixels from which images have a block more."""


class ConvNet(HeadedBackbone):
    """``depth`` blocks of 3x3 convolution, norm, activation and 2x2 pooling, then a linear layer.

    Gidaris and Komodakis (CVPR 2018), with the options of ``networks.py`` in
    VICO-UoE/DatasetCondensation. The paper uses depth 3 for 32x32 images and depth 4 for larger
    ones.

    Args:
        image_shape: (C, H, W); any size that leaves a pixel after the poolings. One-channel images
            are padded by two more pixels in the first block, as in the original, where 28x28
            becomes 32x32.
        num_classes: number of outputs.
        width: channels of every block.
        depth: number of blocks. None: 3, or 4 for images of at least 64 pixels, as in the paper.
        norm: ``"instancenorm"`` (affine, the default of the field), ``"groupnorm"`` (4 groups,
            which must divide the width), ``"layernorm"``, ``"batchnorm"`` or ``"none"``.
        activation: ``"relu"``, ``"leakyrelu"``, ``"sigmoid"`` or ``"swish"``.
        pooling: ``"avgpool"``, ``"maxpool"`` or ``"none"``.

    Attributes:
        feature_dim: length of the embedding, F.

    Raises:
        ValueError: if an option is unknown or the image is too small for the depth.
    """

    batched_second_derivatives = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        width: int = 128,
        depth: int | None = None,
        norm: Norm = "instancenorm",
        activation: Literal["relu", "leakyrelu", "sigmoid", "swish"] = "relu",
        pooling: Literal["avgpool", "maxpool", "none"] = "avgpool",
    ) -> None:
        super().__init__()
        channels, *size = image_shape
        if depth is None:
            depth = 3 if min(size) < _LARGE else 4
        check_numbers(image_shape, num_classes=num_classes, width=width, depth=depth)
        check_choice("activation", activation, _ACTIVATIONS)
        check_choice("pooling", pooling, [*_POOLINGS, "none"])
        blocks: list[nn.Module] = []
        for block in range(depth):
            padding = 3 if block == 0 and channels == 1 else 1
            blocks.append(nn.Conv2d(channels, width, kernel_size=3, padding=padding))
            channels, size = width, [n + 2 * (padding - 1) for n in size]
            blocks.extend(norm_layers(norm, width, (size[0], size[1])))
            blocks.append(_ACTIVATIONS[activation]())
            if pooling != "none":
                blocks.append(_POOLINGS[pooling]())
                size = [n // 2 for n in size]
        if min(size) < 1:
            raise ValueError(
                f"images of {image_shape[1]}x{image_shape[2]} are too small for depth {depth}: "
                "every block with pooling halves them; use a smaller depth"
            )
        self.blocks = nn.Sequential(*blocks)
        self.feature_dim = width * size[0] * size[1]
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Embedding of the images: (N, C, H, W) -> (N, F)."""
        embedding: Tensor = self.blocks(images)
        return embedding.flatten(1)
