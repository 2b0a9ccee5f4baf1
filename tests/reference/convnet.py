"""The ConvNet of dataset condensation: blocks of 3x3 convolution, norm, activation and 2x2 pooling.

Gidaris and Komodakis (CVPR 2018) as used by Zhao, Mopuri and Bilen (ICLR 2021).
"""

from torch import Tensor, nn


class ConvNet(nn.Module):
    """``features`` then ``classifier``; parameters block by block, weight before bias."""

    def __init__(
        self,
        channels: int = 3,
        num_classes: int = 10,
        width: int = 128,
        depth: int = 3,
        image_size: tuple[int, int] = (32, 32),
        norm: str = "instance",
        activation: str = "relu",
        pooling: str = "avg",
    ) -> None:
        super().__init__()
        height, breadth = image_size
        layers: list[nn.Module] = []
        in_channels = channels
        for block in range(depth):
            padding = 3 if block == 0 and channels == 1 else 1
            layers.append(nn.Conv2d(in_channels, width, kernel_size=3, padding=padding))
            height += 2 * padding - 2
            breadth += 2 * padding - 2
            if norm == "instance":
                layers.append(nn.GroupNorm(width, width, affine=True))
            elif norm == "group":
                layers.append(nn.GroupNorm(4, width, affine=True))
            elif norm == "layer":
                layers.append(nn.LayerNorm([width, height, breadth], elementwise_affine=True))
            elif norm == "batch":
                layers.append(nn.BatchNorm2d(width, affine=True))
            else:
                assert norm == "none"
            if activation == "relu":
                layers.append(nn.ReLU(inplace=True))
            elif activation == "leaky_relu":
                layers.append(nn.LeakyReLU(negative_slope=0.01))
            elif activation == "sigmoid":
                layers.append(nn.Sigmoid())
            else:
                assert activation == "swish"
                layers.append(nn.SiLU())
            if pooling == "avg":
                layers.append(nn.AvgPool2d(kernel_size=2, stride=2))
            elif pooling == "max":
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            else:
                assert pooling == "none"
            if pooling != "none":
                height //= 2
                breadth //= 2
            in_channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * height * breadth, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F), what distribution matching compares."""
        features: Tensor = self.features(images)
        return features.view(features.size(0), -1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.embed(images))
        return logits


def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters by their order, whatever their names."""
    pairs = list(zip(source.parameters(), target.parameters(), strict=True))
    for theirs, ours in pairs:
        assert theirs.shape == ours.shape
        ours.data.copy_(theirs.data)
