"""The package's contenders for DM and the evaluation, run as its users run them."""

from collections.abc import Sequence

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
from dam_lightning.precision import Precision
from dam_lightning.randomness import torch_generator

__all__ = [
    "PackageEvaluation",
    "PackageStep",
    "condenser",
    "losses",
    "recipe",
    "synthetic_set",
]


def condenser(
    case: Case, dam: bool, compile: bool = False, precision: Precision | None = None
) -> DM:
    """DM, or DM+DAM, with the paper's settings for a case, on the CPU."""
    return DM(
        ipc=case.ipc,
        dam={"num_domains": case.num_domains} if dam else None,
        backbone_args=dict(case.backbone_args),
        compile=compile,
        precision=precision,
        seed=SEED,
        num_classes=case.num_classes,
        image_shape=case.image_shape,
    )


def recipe(
    case: Case,
    augmentation: str | None,
    compile: bool = False,
    precision: Precision | None = None,
) -> Recipe:
    """The paper's evaluation, with the networks and epochs of a case."""
    return Recipe(
        backbone_args=case.backbone_args,
        num_networks=case.networks,
        epochs=case.epochs,
        augmentation=augmentation,
        compile=compile,
        precision=precision,
    )


def synthetic_set(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """A condensed set of noise: (M, C, H, W), and (M,) int64, class by class."""
    generator = torch_generator("cpu", SEED, "benchmarks/synthetic")
    images = torch.randn(case.num_synthetic, *case.image_shape, generator=generator)
    labels = torch.arange(case.num_classes).repeat_interleave(case.ipc)
    return images.to(device), labels.to(device)


@torch.no_grad()
def losses(
    networks: Sequence[nn.Module], synthetic: tuple[Tensor, Tensor], data: RandomImages
) -> dict[str, float]:
    """What trained networks make of their training set and of the test images: cross-entropies."""
    images, labels = synthetic
    trained = [F.cross_entropy(network(images), labels) for network in networks]
    tested = [
        F.cross_entropy(network(x), y, reduction="sum")
        for network in networks
        for x, y, _ in data.test_dataloader()
    ]
    return {
        "loss on the condensed set": float(torch.stack(trained).mean()),
        "loss on the test images": float(torch.stack(tested).sum()) / len(data.test),
    }


class PackageStep(ModuleStep):
    """One step of DM.

    Args:
        case: the sizes.
        device: where to run.
        dam: with DAM or without.
        compile: as of `Condenser`.
        precision: as of `Condenser`.
    """

    def __init__(
        self,
        case: Case,
        device: torch.device,
        dam: bool,
        compile: bool = False,
        precision: Precision | None = None,
    ) -> None:
        data = random_images(case, device, domains=dam)
        super().__init__(data, condenser(case, dam, compile, precision).to(device))


class PackageEvaluation(Contender):
    """Training of the networks on a condensed set, and their test, as Evaluation does both.

    Args:
        case: the sizes.
        device: where to run.
        augmentation: DSA strategy, or None.
        compile: as of `Recipe`.
        precision: as of `Recipe`.
    """

    def __init__(
        self,
        case: Case,
        device: torch.device,
        augmentation: str | None,
        compile: bool = False,
        precision: Precision | None = None,
    ) -> None:
        self._data = random_images(case, device)
        self._recipe = recipe(case, augmentation, compile, precision)
        self.precision = self._recipe.precision_on(device)
        self._synthetic = synthetic_set(case, device)
        self._device = device
        self._networks: Sequence[nn.Module]

    def run(self) -> None:
        """Train and test; the same networks on every run."""
        num_classes = self._data.num_classes
        self._networks = train_networks(lambda _: self._synthetic, num_classes, self._recipe, SEED)
        batches = self._data.test_dataloader()
        evaluator = Evaluator(
            self._networks, num_classes, 1, self._device, self._recipe, len(batches)
        )
        for images, labels, domains in batches:
            evaluator.update(images, labels, domains)
        evaluator.scores()

    def outcome(self) -> dict[str, float]:
        """Losses of the trained networks."""
        return losses(self._networks, self._synthetic, self._data)
