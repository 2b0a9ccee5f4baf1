"""The package's contender for MTT."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning import Trainer
from torch import Tensor

from benchmarks.cases import SEED, Case
from benchmarks.data import random_images
from benchmarks.package_step import ModuleStep
from benchmarks.trajectories import COUNT, EXPERT_EPOCHS, MAX_START_EPOCH, random_trajectories
from dam_lightning import MTT

__all__ = ["PackageMTT", "mtt_condenser", "mtt_gradients"]


def mtt_condenser(
    case: Case,
    dam: bool,
    folder: str,
    *,
    compile: bool = False,
    adjoint: bool | None = None,
    augmentation: str | None = None,
    max_images: int | None = None,
) -> MTT:
    """MTT, or MTT+DAM, with the paper's settings but for the step sizes, on the CPU.

    Args:
        case: the sizes.
        dam: with DAM or without.
        folder: of the experts.
        compile: as of `Condenser`.
        adjoint: as of `MTT`.
        augmentation: as of `Condenser`.
        max_images: as of `Condenser`.
    """
    return MTT(
        ipc=case.ipc,
        dam={"num_domains": case.num_domains} if dam else None,
        backbone_args=dict(case.backbone_args),
        # A hundredth and a tenth of what is usual. Else float32 rounding in a student's first steps
        # is a difference in its last ones, and in one step of the images another in the next.
        lr_images=1.0,
        initial_step_size=1e-3,
        # So small that no step size falls below zero, which the package would not let it.
        lr_step_size=1e-8,
        student_steps=case.student_steps,
        expert_epochs=EXPERT_EPOCHS,
        max_start_epoch=MAX_START_EPOCH,
        experts={"folder": folder, "count": COUNT},
        compile=compile,
        adjoint=adjoint,
        augmentation=augmentation,
        max_images=max_images,
        seed=SEED,
        num_classes=case.num_classes,
        image_shape=case.image_shape,
    )


def mtt_gradients(
    masks: Tensor | None, step_sizes: Sequence[Tensor | None]
) -> dict[str, Tensor | None]:
    """Gradients to compare: the step sizes' as one, because a single one may be next to nothing."""
    sizes = torch.stack([size for size in step_sizes if size is not None])
    return {"masks": masks, "step sizes": sizes}


class PackageMTT(ModuleStep):
    """One step of MTT: read an expert, or one of each kind, train students, and their gradients.

    Args:
        case: the sizes.
        device: where to run.
        dam: with DAM or without.
        compile: as of `Condenser`.
        adjoint: as of `MTT`.
        augmentation: as of `Condenser`.
        max_images: as of `Condenser`.
    """

    def __init__(
        self,
        case: Case,
        device: torch.device,
        dam: bool,
        *,
        compile: bool = False,
        adjoint: bool | None = None,
        augmentation: str | None = None,
        max_images: int | None = None,
    ) -> None:
        data = random_images(case, device, domains=dam)
        self._folder = tempfile.TemporaryDirectory()
        for num_domains in (None, case.num_domains) if dam else (None,):
            folder = Path(self._folder.name)
            random_trajectories(case, data, folder, device, num_domains, augmentation)
        module = mtt_condenser(
            case,
            dam,
            self._folder.name,
            compile=compile,
            adjoint=adjoint,
            augmentation=augmentation,
            max_images=max_images,
        )
        module.to(device)
        # It finds its experts when a fit begins; steps are taken without a Trainer.
        module.trainer = Trainer(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            logger=False,
            enable_checkpointing=False,
            default_root_dir=self._folder.name,
        )
        module.trainer.datamodule = data  # type: ignore[attr-defined]
        module.setup("fit")
        module.trainer = None
        self._sizes = [module.step_size, module.step_size_domain]
        super().__init__(data, module)

    def gradients(self) -> Mapping[str, Tensor | None]:
        """Of the masks and of the students' step sizes."""
        dam = self._module.dam
        masks = None if dam is None else dam.logits.grad
        return mtt_gradients(masks, [size.grad for size in self._sizes if size is not None])
