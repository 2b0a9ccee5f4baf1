"""A loss whose gradient was computed beforehand, piece by piece."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["carry_gradient"]


class _CarriedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: Tensor, tensor: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, None, Tensor]:
        (gradient,) = ctx.saved_tensors
        return None, None, upstream[0] * gradient


def carry_gradient(value: Tensor, gradient: Tensor, tensor: Tensor) -> Tensor:
    """The scalar ``value``, as a function of ``tensor`` whose gradient is known to be ``gradient``.

    What follows treats it like any loss: it can be added, weighted and differentiated once more
    back through whatever ``tensor`` was made from, and distributed strategies reduce what comes
    out.

    Args:
        value: the loss, a scalar without graph.
        gradient: its gradient, of the shape of ``tensor``.
        tensor: what it is the gradient with respect to.

    Returns:
        A scalar connected to ``tensor``.
    """
    carried: Tensor = _CarriedGradient.apply(value, gradient, tensor)
    return carried
