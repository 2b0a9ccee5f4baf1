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


def dc_condenser(case: Case, dam: bool, max_images: int | None = None) -> DC:
    """DC, or DC+DAM, with the paper's settings but for the loops, on the CPU.

    Without inner epochs every step has new networks; with them all steps have the same, whose outer
    loop no benchmark sees the end of.
    """
    return DC(
        ipc=case.ipc,
        dam={"num_domains": case.num_domains} if dam else None,
        backbone_args=dict(case.backbone_args),
        outer_loop=_ENDLESS if case.inner_epochs else 1,
        inner_loop=case.inner_epochs,
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
        max_images: as of `Condenser`.
    """

    def __init__(
        self, case: Case, device: torch.device, dam: bool, max_images: int | None = None
    ) -> None:
        data = random_images(case, device, domains=dam)
        super().__init__(data, dc_condenser(case, dam, max_images).to(device))

    def gradients(self) -> Mapping[str, Tensor | None]:
        """Of the masks."""
        return {"masks": None if self._module.dam is None else self._module.dam.logits.grad}
