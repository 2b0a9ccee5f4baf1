"""Vision transformers, of the sizes that condensed sets are tested on."""

import torch
from torch import Tensor, nn

from dam_lightning.backbones.base import HeadedBackbone
from dam_lightning.backbones.layer_norm import LayerNorm
from dam_lightning.backbones.options import check_numbers

__all__ = ["ViTSmall", "ViTTiny", "VisionTransformer"]


class VisionTransformer(HeadedBackbone):
    """A vision transformer with a class token, made from scratch.

    Dosovitskiy et al. (ICLR 2021) in the form of DeiT (Touvron et al., ICML 2021): learned
    positions, norm before attention and before the MLP, GELU, a linear layer on the class token.
    `ViTTiny` and `ViTSmall` are the named sizes.

    Args:
        image_shape: (C, H, W), of any size; the images are padded with zeros to whole patches.
        num_classes: number of outputs.
        width: length of a token.
        depth: number of blocks.
        heads: attention heads of each block.
        mlp_width: hidden units of each block's MLP.
        head_width: length of the queries, keys and values of a head; ``heads * head_width`` need
            not be ``width``.
        patch_size: pixels of a patch's side. None: an eighth of the shorter side, rounded up, so
            that square images of any size give 64 patches or a little fewer; 4 at 32x32.
        dropout: share of values dropped after the positions, the attention and both layers of the
            MLP.

    Attributes:
        feature_dim: length of the embedding, F: the width.

    Raises:
        ValueError: if an option is out of its range.
    """

    batched_second_derivatives = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        head_width: int = 64,
        patch_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, *size = image_shape
        patch = -(-min(size) // 8) if patch_size is None else patch_size
        check_numbers(
            image_shape,
            num_classes=num_classes,
            width=width,
            depth=depth,
            heads=heads,
            mlp_width=mlp_width,
            head_width=head_width,
            patch_size=patch,
        )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if patch > min(size):
            raise ValueError(
                f"patch_size {patch} is larger than images of {size[0]}x{size[1]}; use at most "
                f"{min(size)}"
            )
        counts = [-(-side // patch) for side in size]
        # Where an odd number of pixels is missing, one too many is padded, and no patch reads it.
        padding = [-(-(n * patch - side) // 2) for n, side in zip(counts, size, strict=True)]
        self.patches = nn.Conv2d(channels, width, patch, patch, (padding[0], padding[1]))
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + counts[0] * counts[1], width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(_Block(width, heads, head_width, mlp_width, dropout) for _ in range(depth))
        )
        self.norm = LayerNorm([width], eps=1e-6)
        self.classifier = nn.Linear(width, num_classes)
        self.feature_dim = width
        self._initialise()

    def _initialise(self) -> None:
        """DeiT's: truncated normal with standard deviation 0.02, biases 0; patches as they are."""
        for tensor in (self.class_token, self.positions):
            nn.init.trunc_normal_(tensor, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def features(self, images: Tensor) -> Tensor:
        """Class token after the last norm: (N, C, H, W) -> (N, F)."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1)
        tokens = self.blocks(self.dropout(tokens + self.positions))
        embedding: Tensor = self.norm(tokens[:, 0])
        return embedding


class ViTTiny(VisionTransformer):
    """`VisionTransformer` of DeiT-Ti's size: width 192, depth 12, 3 heads, MLP 768.

    The paper names ViT-Tiny without its sizes; arguments, attributes and errors are those of
    `VisionTransformer`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        mlp_width: int = 768,
        head_width: int = 64,
        patch_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            image_shape,
            num_classes,
            width,
            depth,
            heads,
            mlp_width,
            head_width,
            patch_size,
            dropout,
        )


class ViTSmall(VisionTransformer):
    """`VisionTransformer` of DeiT-S's size: width 384, depth 12, 6 heads, MLP 1536.

    The paper names ViT-Small without its sizes; arguments, attributes and errors are those of
    `VisionTransformer`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_width: int = 1536,
        head_width: int = 64,
        patch_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            image_shape,
            num_classes,
            width,
            depth,
            heads,
            mlp_width,
            head_width,
            patch_size,
            dropout,
        )


class _Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a shortcut: (N, T, width) -> same."""

    def __init__(
        self, width: int, heads: int, head_width: int, mlp_width: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            LayerNorm([width], eps=1e-6),
            _Attention(width, heads, head_width),
            nn.Dropout(dropout),
        )
        self.mlp = nn.Sequential(
            LayerNorm([width], eps=1e-6),
            nn.Linear(width, mlp_width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_width, width),
            nn.Dropout(dropout),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(tokens)
        after: Tensor = tokens + self.mlp(tokens)
        return after


class _Attention(nn.Module):
    """Attention of every token to all: (N, T, width) -> same."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self._heads = heads
        self._scale = head_width**-0.5
        self.projections = nn.Linear(width, 3 * heads * head_width)
        self.output = nn.Linear(heads * head_width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        # Spelt out, because DC and MTT differentiate twice, which the fused kernels do not allow.
        projected = self.projections(tokens).unflatten(-1, (3, self._heads, -1))
        queries, keys, values = projected.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (queries @ keys.transpose(-2, -1) * self._scale).softmax(-1)
        mixed: Tensor = self.output((weights @ values).transpose(1, 2).flatten(2))
        return mixed
