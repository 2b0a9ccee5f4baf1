"""The package's contender for DC."""

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.cases import SEED, Case
from benchmarks.data import random_images
from benchmarks.package_step import ModuleStep
from dam_lightning import DC

__all__ = ["PackageDC", "dc_condenser"]

_ENDLESS = 10**6


def dc_condenser(
    case: Case,
    dam: bool,
    *,
    iteration: bool = False,
    compile: bool = False,
    max_images: int | None = None,
) -> DC:
    """DC, or DC+DAM, with the paper's settings, on the CPU.

    Args:
        case: the sizes.
        dam: with DAM or without.
        iteration: with the outer loop of the case. Else it has no end, so that all steps but the
            first do the same; but without inner epochs every step has new networks.
        compile: as of `Condenser`.
        max_images: as of `Condenser`.
    """
    outer_loop = case.outer_loop
    if not iteration:
        outer_loop = _ENDLESS if case.inner_epochs else 1
    return DC(
        ipc=case.ipc,
        dam={"num_domains": case.num_domains} if dam else None,
        backbone_args=dict(case.backbone_args),
        outer_loop=outer_loop,
        inner_loop=case.inner_epochs,
        compile=compile,
        max_images=max_images,
        seed=SEED,
        num_classes=case.num_classes,
        image_shape=case.image_shape,
    )


class PackageDC(ModuleStep):
    """One step of DC: the inner training, where there is one and a step before, and the matching.

    Args:
        case: the sizes.
        device: where to run.
        dam: with DAM or without.
        iteration: a run is a whole iteration: all steps with the same networks.
        compile: as of `Condenser`.
        max_images: as of `Condenser`.
    """

    def __init__(
        self,
        case: Case,
        device: torch.device,
        dam: bool,
        *,
        iteration: bool = False,
        compile: bool = False,
        max_images: int | None = None,
    ) -> None:
        data = random_images(case, device, domains=dam)
        module = dc_condenser(
            case, dam, iteration=iteration, compile=compile, max_images=max_images
        )
        self._steps = case.outer_loop if iteration else 1
        super().__init__(data, module.to(device))

    def run(self) -> None:
        """A step, or all of an iteration."""
        for _ in range(self._steps):
            super().run()

    def gradients(self) -> Mapping[str, Tensor | None]:
        """Of the masks."""
        return {"masks": None if self._module.dam is None else self._module.dam.logits.grad}
