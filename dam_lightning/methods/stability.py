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
    "a gradient, or an update by it, is not finite",
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

    Attributes:
        in_a_row: buffer, steps up to the last in which something was found, scalar int64.
        longest: buffer, the most of them in a row, scalar int64.
        counts: buffer, (R,) int64, the steps in which each of the R reasons was found.
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

    def reset(self) -> None:
        """Forget what was counted, for another run."""
        for counter in (self.in_a_row, self.longest, self.counts):
            counter.zero_()

    @torch.no_grad()
    def inspect(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """Decide on the update that ``optimizer`` is about to make.

        Args:
            optimizer: from `guarded_sgd`, with its gradients as they will be used: after they were
                reduced over processes and clipped.
            loss: the scalar loss over all processes.
        """
        held = torch.zeros((), dtype=torch.bool, device=loss.device)
        too_far, finite = held, ~held
        positive = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = _momentum(optimizer, group, parameter)
                updated = _updated(group, parameter, momentum)
                finite = finite & updated.isfinite().all()
                if group.get("limit") is not None:
                    too_far = too_far | (updated.abs() > group["limit"]).any()
                if group.get("positive"):
                    falls = updated <= 0
                    held = held | falls.any()
                    positive.append((parameter.grad, momentum, falls))
        above = torch.zeros_like(held) if self._max_loss is None else loss > self._max_loss
        spoilt = torch.stack([~loss.isfinite(), ~finite, above, too_far])
        left_out = spoilt.any()
        for gradient, momentum, falls in positive:
            gradient.masked_fill_(falls, 0)
            if momentum is not None:
                momentum.masked_fill_(falls & ~left_out, 0)
        optimizer.found_inf = left_out.float()  # type: ignore[attr-defined]
        found = torch.cat([spoilt, held.unsqueeze(0)])
        self.counts += found
        self.in_a_row.copy_(torch.where(found.any(), self.in_a_row + 1, 0))
        self.longest.copy_(torch.maximum(self.longest, self.in_a_row))

    def left_out(self) -> dict[str, int]:
        """How often each reason was found, if ever. Waits for the device."""
        counts = self.counts.tolist()
        return {name: count for name, count in zip(_REASONS, counts, strict=True) if count}

    def check(self, limit: int, remedies: Sequence[str], kept: str) -> None:
        """Stop a run that leads nowhere. Waits for the device.

        Args:
            limit: so many steps in a row are too many.
            remedies: what to try, such as ``"a smaller lr (now 1.0)"``.
            kept: where the last good images are.

        Raises:
            DivergenceError: there were so many.
        """
        if int(self.longest) < limit:
            return
        found = "; ".join(f"{name}: {count} times" for name, count in self.left_out().items())
        raise DivergenceError(
            f"in {int(self.longest)} steps in a row something had to be left out or held "
            f"({found}). Try {', or '.join(remedies)}. The last good images are in {kept}"
        )


def _momentum(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: nn.Parameter
) -> Tensor | None:
    """A parameter's momentum, None where there is none."""
    if not group["momentum"]:
        return None
    state = optimizer.state[parameter]
    if state.get("momentum_buffer") is None:
        # The first step would make it, and leave whatever is in its memory where it is left out.
        state["momentum_buffer"] = torch.zeros_like(parameter)
    buffer: Tensor = state["momentum_buffer"]
    return buffer


def _updated(group: Mapping[str, Any], parameter: nn.Parameter, momentum: Tensor | None) -> Tensor:
    """What SGD would make of a parameter."""
    step = parameter.grad
    assert step is not None
    if momentum is not None:
        step = group["momentum"] * momentum + step
    updated: Tensor = parameter - group["lr"] * step
    return updated


def guarded_sgd(groups: Sequence[dict[str, Any]], momentum: float) -> torch.optim.SGD:
    """An SGD whose steps a `StepGuard` can leave out.

    Args:
        groups: parameter groups with ``params`` and ``lr``, and what the guard reads of them.
        momentum: of all groups.
    """
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
    # It could unscale gradients of 16-bit floats, for which Lightning refuses to clip them; there
    # are none here.
    optimizer._step_supports_amp_scaling = False
    return optimizer
