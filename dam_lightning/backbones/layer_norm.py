"""Layer normalisation whose gradients can be batched and then differentiated."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["LayerNorm"]


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimensions, with weight and bias.

    The same numbers as ``torch.nn.LayerNorm``. That one has a wrong second derivative inside
    ``torch.func.vmap(torch.func.grad(...))``, which DC takes for several groups at once: its
    batched backward takes mean and variance for constants (seen in PyTorch 2.15).

    Args:
        shape: sizes of the dimensions.
        eps: added to the variance.
    """

    def __init__(self, shape: Sequence[int], eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*shape))
        self.bias = nn.Parameter(torch.zeros(*shape))
        self._eps = eps

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., *shape) -> same, in float32 where the inputs have less precision."""
        inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        dimensions = list(range(-self.weight.ndim, 0))
        variance, mean = torch.var_mean(inputs, dimensions, correction=0, keepdim=True)
        return (inputs - mean) * torch.rsqrt(variance + self._eps) * self.weight + self.bias
