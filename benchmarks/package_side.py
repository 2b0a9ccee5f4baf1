"""The package's contenders, run as its users run them."""

from typing import Literal

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases import SEED, Case
from benchmarks.contender import Contender
from benchmarks.data import RandomImages, random_images
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
    "step_outcome",
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


@torch.no_grad()
def step_outcome(loss: Tensor | float, images: Tensor, start: Tensor) -> dict[str, float]:
    """What a step computed: the class loss plus the weighted domain loss, and the images."""
    return {"loss": float(loss), "distance of the images": float((images - start).norm())}


class PackageStep(Contender):
    """One step of DM: draw and gather a batch, training_step, backward, optimiser.

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
        self._batches = iter(random_images(case, device, domains=dam).train_dataloader())
        self._module = condenser(case, dam).to(device)
        self._start = self._module.images.detach().clone()
        self._optimizer = self._module.configure_optimizers()
        # What the Trainer wraps around training_step.
        self._precision = (
            Precision() if precision == "32-true" else MixedPrecision(precision, device.type)
        )
        self._loss: Tensor

    def run(self) -> None:
        """One step, in the order of Lightning's automatic optimisation."""
        batch = next(self._batches)
        with self._precision.train_step_context():
            loss = self._module.training_step(batch, batch.step)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._loss = loss.detach()

    def outcome(self) -> dict[str, float]:
        """Loss of the step, and where the images are after it."""
        return step_outcome(self._loss, self._module.images, self._start)


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
