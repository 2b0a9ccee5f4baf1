"""Gradients that are computed in pieces: beforehand, or a second time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["RepeatedDraws", "added", "carry_gradient", "recomputed"]


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


class RepeatedDraws:
    """What PyTorch's global generators will draw next, to be drawn a second time.

    For what is computed again and contains dropout.

    Args:
        device: where it is drawn, besides the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        on_device = [torch.cuda.default_generators[device.index]] if device.type == "cuda" else []
        self._generators = [torch.default_generator, *on_device]
        self._states = self._now()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw the same inside, and go on behind as if nothing had been drawn."""
        before = self._now()
        self._set(self._states)
        yield
        self._set(before)

    def _now(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]

    def _set(self, states: Sequence[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        ctx.function = function
        device = tensor.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.draws = RepeatedDraws(tensor.device)
        ctx.save_for_backward(tensor)
        return function(tensor)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor]:
        device, dtype, enabled = ctx.autocast
        (tensor,) = ctx.saved_tensors
        # Backward of another device runs in a thread of its own, which knows of no autocast.
        with torch.enable_grad(), torch.autocast(device, dtype, enabled), ctx.draws.again():
            leaf = tensor.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(ctx.function(leaf), leaf, upstream)
        return None, gradient


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


def added(total: list[Tensor] | None, further: list[Tensor]) -> list[Tensor]:
    """The sum of two gradients, tensor by tensor; the first may not be there yet."""
    if total is None:
        return further
    return [ours + theirs for ours, theirs in zip(total, further, strict=True)]
