"""Options that several backbones have in common, and how wrong ones are refused."""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from torch import nn

from dam_lightning.backbones.group_norm import GroupNorm
from dam_lightning.backbones.layer_norm import LayerNorm

__all__ = ["BackboneArgs", "Norm", "check_choice", "check_numbers", "check_size", "norm_layers"]

BackboneArgs = Mapping[str, bool | int | float | str | list[bool | int | float | str | None] | None]
"""Options of a backbone. Plain values: of anything, the command line would make whatever object a
configuration names."""

Norm = Literal["instancenorm", "groupnorm", "layernorm", "batchnorm", "none"]
"""Normalisation after a convolution, as in ``networks.py`` of VICO-UoE/DatasetCondensation:
instance norm (affine, the default of the field), group norm (4 groups, which must divide the
width), layer norm over channels and pixels, batch norm or none."""

_NORMS: dict[str, Callable[[int, tuple[int, int]], nn.Module]] = {
    "instancenorm": lambda width, _: GroupNorm(width, width),
    "groupnorm": lambda width, _: GroupNorm(4, width),
    "layernorm": lambda width, size: LayerNorm([width, *size]),
    "batchnorm": lambda width, _: nn.BatchNorm2d(width),
}


def norm_layers(norm: Norm, width: int, size: tuple[int, int]) -> list[nn.Module]:
    """The layer that normalises (N, width, *size), in a list; an empty one for ``"none"``.

    Raises:
        ValueError: if there is no such normalisation or it does not suit the width.
    """
    check_choice("norm", norm, [*_NORMS, "none"])
    if norm == "groupnorm" and width % 4:
        raise ValueError(f"norm groupnorm has 4 groups, which do not divide {width} channels")
    return [] if norm == "none" else [_NORMS[norm](width, size)]


def check_choice(option: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a value that is not allowed.

    Raises:
        ValueError: names the option, the allowed values and the value.
    """
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")


def check_numbers(image_shape: tuple[int, int, int], **numbers: int) -> None:
    """Refuse an empty image and sizes below 1.

    Raises:
        ValueError: names the sizes and their values.
    """
    if min(*image_shape, *numbers.values()) < 1:
        *names, last = ["image_shape", *numbers]
        *values, final = [str(tuple(image_shape)), *map(str, numbers.values())]
        raise ValueError(
            f"{', '.join(names)} and {last} must be at least 1, got {', '.join(values)} and {final}"
        )


def check_size(network: str, image_shape: tuple[int, int, int], least: int) -> None:
    """Refuse images of which the poolings of a network would leave nothing.

    Args:
        network: its name.
        image_shape: (C, H, W).
        least: what H and W must be at least.

    Raises:
        ValueError: names the network, the size and the least size.
    """
    if min(image_shape[1:]) < least:
        raise ValueError(
            f"images of {image_shape[1]}x{image_shape[2]} are too small for {network}, whose "
            f"poolings halve them again and again; use images of at least {least}x{least}, or a "
            "ConvNet with a smaller depth"
        )
