"""Fresh weights for a network, all drawn in one call on its device."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dam_lightning.backbones.layer_norm import LayerNorm

__all__ = ["FreshWeights"]

_DRAWN = (nn.Conv2d, nn.Linear)
_CONSTANT = (nn.GroupNorm, nn.LayerNorm, LayerNorm, _BatchNorm)


class FreshWeights:
    """Draws the parameters of a network anew, as often as asked, in place.

    They are distributed as the constructors of PyTorch's layers leave them: weights and biases of
    convolutions and linear layers uniformly within 1 / sqrt(fan in), norms at 1 and 0. Instead of
    two draws for each layer there is one for the network, which on an accelerator is one launch.

    Args:
        network: on its device, of these layers alone, with their default initialisation. Parameters
            are looked at once and keep their places.

    Raises:
        ValueError: a parameter belongs to another kind of layer.
    """

    def __init__(self, network: nn.Module) -> None:
        limits: dict[nn.Parameter, tuple[float, float]] = {}
        for module in network.modules():
            if isinstance(module, _DRAWN):
                limit = module.weight[0].numel() ** -0.5
                limits |= dict.fromkeys(module.parameters(recurse=False), (-limit, limit))
            elif isinstance(module, _CONSTANT):
                limits |= dict.fromkeys(module.parameters(recurse=False), (0.0, 0.0))
                if module.weight is not None:
                    limits[module.weight] = (1.0, 1.0)
        self._parameters = list(network.parameters())
        self._sizes = [parameter.numel() for parameter in self._parameters]
        unknown = [name for name, p in network.named_parameters() if p not in limits]
        if unknown:
            raise ValueError(f"how to draw {', '.join(unknown)} is not known")
        low, high = (
            torch.cat([p.new_full((p.numel(),), limits[p][end]) for p in self._parameters])
            for end in (0, 1)
        )
        self._low, self._span = low.detach(), (high - low).detach()

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Replace all parameters; the generator is on the device of the network."""
        like = self._low
        drawn: Tensor = torch.rand(
            like.shape, generator=generator, dtype=like.dtype, device=like.device
        )
        drawn.mul_(self._span).add_(self._low)
        for parameter, values in zip(
            self._parameters, torch.split(drawn, self._sizes), strict=True
        ):
            parameter.copy_(values.view_as(parameter))
