"""The package's contenders for DM and the evaluation, run as its users run them."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases import SEED, Case
from benchmarks.contender import Contender
from benchmarks.data import RandomImages, random_images
from benchmarks.package_step import ModuleStep
from dam_lightning import DM
from dam_lightning.evaluation import Recipe
from dam_lightning.evaluation.evaluator import Evaluator, train_networks
from dam_lightning.randomness import torch_generator

__all__ = [
    "PackageEvaluation",
    "PackageStep",
    "condenser",
    "losses",
    "recipe",
    "synthetic_set",
]


def condenser(case: Case, dam: bool) -> DM:
    """DM, or DM+DAM, with the paper's settings for a case, on the CPU."""
    return DM(
        ipc=case.ipc,
        dam={"num_domains": case.num_domains} if dam else None,
        backbone_args=dict(case.backbone_args),
        seed=SEED,
        num_classes=case.num_classes,
        image_shape=case.image_shape,
    )


def recipe(case: Case, augmentation: str | None) -> Recipe:
    """The paper's evaluation of one network, with the epochs of a case."""
    return Recipe(
        backbone_args=case.backbone_args,
        num_networks=1,
        epochs=case.epochs,
        augmentation=augmentation,
    )


def synthetic_set(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """A condensed set of noise: (M, C, H, W), and (M,) int64, class by class."""
    generator = torch_generator("cpu", SEED, "benchmarks/synthetic")
    images = torch.randn(case.num_synthetic, *case.image_shape, generator=generator)
    labels = torch.arange(case.num_classes).repeat_interleave(case.ipc)
    return images.to(device), labels.to(device)


@torch.no_grad()
def losses(
    network: nn.Module, synthetic: tuple[Tensor, Tensor], data: RandomImages
) -> dict[str, float]:
    """What a trained network makes of its training set and of the test images: cross-entropies."""
    tested = [F.cross_entropy(network(x), y, reduction="sum") for x, y, _ in data.test_dataloader()]
    images, labels = synthetic
    return {
        "loss on the condensed set": float(F.cross_entropy(network(images), labels)),
        "loss on the test images": float(torch.stack(tested).sum()) / len(data.test),
    }


class PackageStep(ModuleStep):
    """One step of DM.

    Args:
        case: the sizes.
        device: where to run.
        dam: with DAM or without.
        precision: as the Trainer's argument.
    """

    def __init__(
        self,
        case: Case,
        device: torch.device,
        dam: bool,
        precision: Literal["32-true", "bf16-mixed"] = "32-true",
    ) -> None:
        data = random_images(case, device, domains=dam)
        super().__init__(data, condenser(case, dam).to(device), precision)


class PackageEvaluation(Contender):
    """Training of one network on a condensed set, and its test, as Evaluation does both.

    Args:
        case: the sizes.
        device: where to run.
        augmentation: DSA strategy, or None.
    """

    def __init__(self, case: Case, device: torch.device, augmentation: str | None) -> None:
        self._data = random_images(case, device)
        self._recipe = recipe(case, augmentation)
        self._synthetic = synthetic_set(case, device)
        self._device = device
        self._network: nn.Module

    def run(self) -> None:
        """Train and test; the same network on every run."""
        num_classes = self._data.num_classes
        networks = train_networks(lambda _: self._synthetic, num_classes, self._recipe, SEED)
        evaluator = Evaluator(networks, num_classes, 1, self._device)
        for images, labels, domains in self._data.test_dataloader():
            evaluator.update(images, labels, domains)
        evaluator.scores()
        (self._network,) = networks

    def outcome(self) -> dict[str, float]:
        """Losses of the trained network."""
        return losses(self._network, self._synthetic, self._data)
