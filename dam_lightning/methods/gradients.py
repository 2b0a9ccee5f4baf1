"""Gradients that are computed in pieces: beforehand, or a second time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["carry_gradient", "recomputed"]


class _CarriedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *pairs: Tensor) -> Tensor:
        ctx.save_for_backward(*pairs[: len(pairs) // 2])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        return None, *(None for _ in gradients), *(upstream[0] * g for g in gradients)


def carry_gradient(value: Tensor, gradients: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """The scalar ``value``, as a function of ``tensors`` whose gradients are known beforehand.

    What follows treats it like any loss: it can be added, weighted and differentiated once more
    back through whatever ``tensors`` were made from, and distributed strategies reduce what comes
    out.

    Args:
        value: the loss, a scalar without graph.
        gradients: its gradient with respect to each of ``tensors``, of the same shapes.
        tensors: what they are the gradients with respect to.

    Returns:
        A scalar connected to ``tensors``.
    """
    carried: Tensor = _CarriedGradient.apply(value, *gradients, *tensors)
    return carried


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        ctx.function = function
        device = tensor.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.generators = [generator.get_state() for generator in _generators(tensor.device)]
        ctx.save_for_backward(tensor)
        return function(tensor)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor]:
        device, dtype, enabled = ctx.autocast
        (tensor,) = ctx.saved_tensors
        generators = _generators(tensor.device)
        before = [generator.get_state() for generator in generators]
        _set_states(generators, ctx.generators)
        # Backward of another device runs in a thread of its own, which knows of no autocast.
        with torch.enable_grad(), torch.autocast(device, dtype, enabled):
            leaf = tensor.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(ctx.function(leaf), leaf, upstream)
        _set_states(generators, before)
        return None, gradient


def _generators(device: torch.device) -> list[torch.Generator]:
    """The global generators that work on ``device`` may draw from, for dropout."""
    on_device = [torch.cuda.default_generators[device.index]] if device.type == "cuda" else []
    return [torch.default_generator, *on_device]


def _set_states(generators: Sequence[torch.Generator], states: Sequence[Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def recomputed(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """``function(tensor)``, whose graph is built in backward and freed there at once.

    As `torch.utils.checkpoint`, but also for functions that use ``torch.func``, which does not go
    together with the hooks of that.

    Args:
        function: deterministic but for draws from PyTorch's global generators, which are repeated;
            differentiable in its argument, which is its only input with a gradient.
        tensor: of any shape.
    """
    if not (torch.is_grad_enabled() and tensor.requires_grad):
        return function(tensor)
    result: Tensor = _Recomputed.apply(function, tensor)
    return result
