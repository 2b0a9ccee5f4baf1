"""One step of any condenser, run as its users run it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import record_function

from benchmarks.contender import Contender
from benchmarks.data import RandomImages
from dam_lightning import Condenser
from dam_lightning.data.groups import Groups

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
    """

    waits = False

    def __init__(self, data: RandomImages, module: Condenser) -> None:
        self._batches = iter(data.train_dataloader())
        self._module = module
        self._start = module.images.detach().clone()
        self._optimizer = module.configure_optimizers()
        self._loss: Tensor
        self.precision = module._forward_precision

    def run(self) -> None:
        """One step, in the order of Lightning's automatic optimisation."""
        batch = next(self._batches)
        loss = self._module.training_step(batch, batch.step)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._loss = loss.detach()
        # What the module does in the hook for clipping, which asks for a Trainer.
        self._module._guard.inspect(self._optimizer, self._loss)
        self._optimizer.step()

    def outcome(self) -> dict[str, float]:
        """What the step computed."""
        return step_outcome(self._loss, self._module.images, self._start, self.gradients())

    def gradients(self) -> Mapping[str, Tensor | None]:
        """Gradients to compare besides, by name."""
        return {}

    @contextmanager
    def labelled(self) -> Iterator[None]:
        """Real images and augmentation have names of their own, where they are not compiled."""
        module = self._module
        augmenting = {
            "_augment": _named("augmentation", module._augment),
            "_augment_pixels": _named("augmentation", module._augment_pixels),
        }
        with (
            patch.object(Groups, "images", _named("data", Groups.images)),
            patch.object(Groups, "pixels", _named("data", Groups.pixels)),
            patch.dict(module.__dict__, augmenting),
        ):
            yield


def _named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def named(*arguments: Any) -> Any:
        with record_function(name):
            return function(*arguments)

    return named
