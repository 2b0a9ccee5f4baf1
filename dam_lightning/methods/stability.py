"""Steps that would spoil the images are left out, and a run of nothing else is stopped.

Users of trajectory matching lose runs to losses that turn NaN, images that explode and synthetic
step sizes that fall below zero (issues 6, 16, 24, 31 and 42 of GeorgeCazenavette/mtt-distillation).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["DivergenceError", "StepGuard", "guarded_sgd"]

_REASONS = (
    "the loss is not finite",
    "a gradient is not finite",
    "the loss is above max_loss",
    "images would go beyond max_value",
    "a step size would fall to 0 or below",
)


class DivergenceError(FloatingPointError):
    """So many steps in a row had to be left out that the run leads nowhere."""


class StepGuard(nn.Module):
    """Looks at each update before it is made; everything stays on the device.

    `torch.optim.SGD` with ``fused=True`` leaves out the update of parameters and of momentum where
    its ``found_inf`` is 1, exactly. A parameter group may ask for more: one with ``limit`` has
    parameters that must stay within that of zero, one with ``positive`` has parameters that keep
    their value, and lose their momentum, where they would fall to zero or below.

    Args:
        max_loss: above this a loss counts as exploding; None: no loss does.
    """

    in_a_row: Tensor
    longest: Tensor
    counts: Tensor

    def __init__(self, max_loss: float | None) -> None:
        super().__init__()
        self._max_loss = max_loss
        # Not part of checkpoints: they tell of this process' steps.
        self.register_buffer("in_a_row", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("longest", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer(
            "counts", torch.zeros(len(_REASONS), dtype=torch.int64), persistent=False
        )

    @torch.no_grad()
    def inspect(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """Decide on the update that ``optimizer`` is about to make.

        Args:
            optimizer: a fused SGD with its gradients, after they were reduced over processes.
            loss: the scalar loss over all processes.
        """
        held = torch.zeros((), dtype=torch.bool, device=loss.device)
        too_far, finite = held, ~held
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                finite = finite & parameter.grad.isfinite().all()
                updated = _updated(optimizer, group, parameter)
                if group.get("limit") is not None:
                    too_far = too_far | (updated.abs() > group["limit"]).any()
                if group.get("positive"):
                    falls = updated <= 0
                    held = held | falls.any()
                    # With this gradient SGD's new momentum is exactly zero.
                    still = -group["momentum"] * _momentum(optimizer, parameter)
                    parameter.grad.copy_(torch.where(falls, still, parameter.grad))
        above = torch.zeros_like(held) if self._max_loss is None else loss > self._max_loss
        found = torch.stack([~loss.isfinite(), ~finite, above, too_far, held])
        optimizer.found_inf = found[:-1].any().float()  # type: ignore[attr-defined]
        self.counts += found
        self.in_a_row.copy_(torch.where(found.any(), self.in_a_row + 1, 0))
        self.longest.copy_(torch.maximum(self.longest, self.in_a_row))

    def left_out(self) -> dict[str, int]:
        """How often each reason was found, if ever. Waits for the device."""
        counts = self.counts.tolist()
        return {name: count for name, count in zip(_REASONS, counts, strict=True) if count}

    def check(self, limit: int, knobs: Mapping[str, Any], kept: str) -> None:
        """Stop a run that leads nowhere. Waits for the device.

        Args:
            limit: steps in a row that may be left out.
            knobs: arguments to try other values of, with their values.
            kept: where the images are that were there before.

        Raises:
            DivergenceError: more were.
        """
        if int(self.longest) < limit:
            return
        found = "; ".join(f"{name}: {count} times" for name, count in self.left_out().items())
        listed = ", ".join(f"{name} (now {value})" for name, value in knobs.items())
        raise DivergenceError(
            f"{int(self.longest)} steps in a row were left out ({found}). Try smaller values of "
            f"{listed}, or init: real. The images as they were before these steps are in {kept}"
        )


def _momentum(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor:
    buffer: Tensor | None = optimizer.state[parameter].get("momentum_buffer")
    return torch.zeros_like(parameter) if buffer is None else buffer


def _updated(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: nn.Parameter
) -> Tensor:
    """What SGD would make of a parameter."""
    assert parameter.grad is not None
    step = group["momentum"] * _momentum(optimizer, parameter) + parameter.grad
    updated: Tensor = parameter - group["lr"] * step
    return updated


def guarded_sgd(groups: Sequence[dict[str, Any]], momentum: float) -> torch.optim.SGD:
    """An SGD whose steps a `StepGuard` can leave out.

    Args:
        groups: parameter groups with ``params`` and ``lr``, and what the guard reads of them.
        momentum: of all groups.
    """
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
    if momentum:
        # Made by the first step otherwise, which leaves them unset when it is left out.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
