"""One step of any condenser, run as its users run it."""

from collections.abc import Mapping
from typing import Literal

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import Tensor

from benchmarks.contender import Contender
from benchmarks.data import RandomImages
from dam_lightning import Condenser

__all__ = ["ModuleStep", "step_outcome"]


@torch.no_grad()
def step_outcome(
    loss: Tensor | float,
    images: Tensor,
    start: Tensor,
    gradients: Mapping[str, Tensor | None] | None = None,
) -> dict[str, float]:
    """What a step computed.

    Args:
        loss: the class loss plus the weighted domain loss.
        images: after the step.
        start: the images before the first step.
        gradients: of whatever else is learned, by name; what has none is left out.
    """
    return {
        "loss": float(loss),
        "distance of the images": float((images - start).norm()),
        **{
            f"gradient of the {name}": float(gradient.norm())
            for name, gradient in (gradients or {}).items()
            if gradient is not None
        },
    }


class ModuleStep(Contender):
    """One step: draw and gather a batch, training_step, backward, the guard, the optimiser.

    Args:
        data: where the batches come from.
        module: on its device.
        precision: as the Trainer's argument.
    """

    def __init__(
        self,
        data: RandomImages,
        module: Condenser,
        precision: Literal["32-true", "bf16-mixed"] = "32-true",
    ) -> None:
        self._batches = iter(data.train_dataloader())
        self._module = module
        self._start = module.images.detach().clone()
        self._optimizer = module.configure_optimizers()
        # What the Trainer wraps around training_step.
        self._precision = (
            Precision()
            if precision == "32-true"
            else MixedPrecision(precision, module.images.device.type)
        )
        self._loss: Tensor

    def run(self) -> None:
        """One step, in the order of Lightning's automatic optimisation."""
        batch = next(self._batches)
        with self._precision.train_step_context():
            loss = self._module.training_step(batch, batch.step)
        self._optimizer.zero_grad()
        self._module.on_before_backward(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        self._module.on_before_optimizer_step(self._optimizer)
        self._optimizer.step()
        self._loss = loss.detach()

    def outcome(self) -> dict[str, float]:
        """What the step computed."""
        return step_outcome(self._loss, self._module.images, self._start, self.gradients())

    def gradients(self) -> Mapping[str, Tensor | None]:
        """Gradients to compare besides, by name."""
        return {}
