"""The plain loops of ``tests/reference`` as contenders, fed as the published scripts feed theirs.

Draws come from the package's keys, so that both sides see the same; everything else is a loop over
groups, with one gather, one normalisation and one draw in each.
"""

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.cases import SEED, Case
from benchmarks.contender import Contender
from benchmarks.data import random_images
from benchmarks.package_side import condenser, losses, recipe, step_outcome, synthetic_set
from dam_lightning.functional import DSA
from dam_lightning.randomness import numpy_generator, seeded, torch_generator
from tests.reference import augmentation as reference_augmentation
from tests.reference import dm
from tests.reference.convnet import ConvNet

# By name, because it is not typed as strictly as the benchmarks that call it.
_evaluate_synset = importlib.import_module("tests.reference.evaluation").evaluate_synset

__all__ = ["ReferenceEvaluation", "ReferenceStep"]


def _network(
    case: Case, device: torch.device, stream: str, step: int = 0, group: int = 0
) -> ConvNet:
    """A fresh network; the key gives it the weights that the package's has."""
    with seeded(device, SEED, stream, step, group), torch.device(device):
        return ConvNet(
            3,
            case.num_classes,
            case.width,
            case.depth,
            (case.image_size, case.image_size),
        )


def _normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, C, H, W) uint8 as float32, normalised channel by channel."""
    own_mean, own_std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (mean, std))
    return (images.float() / 255 - own_mean) / own_std


class ReferenceStep(Contender):
    """One step of DM by the plain loop over groups.

    Args:
        case: the sizes.
        device: where to run.
        dam: with DAM or without.
    """

    def __init__(self, case: Case, device: torch.device, dam: bool) -> None:
        self._case = case
        self._device = device
        self._data = random_images(case, device, domains=dam)
        self._members = {"class": _members(self._data.train.labels, case.num_classes)}
        if dam:
            assert self._data.pseudo_domains is not None
            self._members["domain"] = _members(self._data.pseudo_domains, case.num_domains)
        start = condenser(case, dam).to(device)
        self._rates = (start.lr_images, start.lr_masks, start.momentum)
        self._start = start.images.detach()
        self._images, self._logits = self._start, None
        self._weight, self._temperature = 0.0, 1.0
        if start.dam is not None:
            self._logits = start.dam.logits.detach()
            self._weight, self._temperature = start.dam.weight, start.dam.temperature
        self._buffers: tuple[Tensor | None, Tensor | None] = (None, None)
        self._step = 0
        self._loss: float

    def run(self) -> None:
        """One step: inputs, losses and gradients, SGD."""
        # Frozen, as the published script does it; else the real images would get a graph.
        network = _network(self._case, self._device, "network", self._step).requires_grad_(False)
        result = dm.dm_step(
            self._images,
            self._case.ipc,
            self._logits,
            self._weight,
            self._temperature,
            network.embed,
            self._real("class"),
            self._real("domain") if "domain" in self._members else None,
            self._augmentation("class"),
            self._augmentation("domain") if "domain" in self._members else None,
        )
        self._loss = result.loss_class.item() + self._weight * result.loss_domain.item()
        of_images, of_logits = self._buffers
        lr_images, lr_masks, momentum = self._rates
        self._images, of_images = dm.sgd_momentum(
            self._images, result.grad_images, of_images, lr_images, momentum
        )
        if self._logits is not None:
            assert result.grad_logits is not None
            self._logits, of_logits = dm.sgd_momentum(
                self._logits, result.grad_logits, of_logits, lr_masks, momentum
            )
        self._buffers = of_images, of_logits
        self._step += 1

    def _real(self, branch: str) -> list[Tensor]:
        """Normalised real images of each group."""
        batches = []
        for group, members in enumerate(self._members[branch]):
            generator = numpy_generator(SEED, f"real/{branch}", self._step, group)
            size = min(self._case.batch_real, len(members))
            chosen = members[
                torch.from_numpy(generator.choice(len(members), size, replace=False))
            ].to(self._device)
            images = self._data.train.images[chosen]
            batches.append(_normalised(images, self._data.mean, self._data.std))
        return batches

    def _augmentation(self, branch: str) -> list[dm.Augmentation]:
        """One operation with its numbers for each group."""
        names = DSA.split("_")
        drawn = []
        for group in range(len(self._members[branch])):
            generator = numpy_generator(SEED, f"augmentation/{branch}", self._step, group)
            drawn.append((names[int(generator.choice(len(names)))], generator.random(3).tolist()))
        return drawn

    def outcome(self) -> dict[str, float]:
        """Loss of the step, and where the images are after it."""
        return step_outcome(self._loss, self._images, self._start)


def _members(labels: Tensor, count: int) -> list[Tensor]:
    """Numbers of the images of each group, on the CPU."""
    return [(labels == group).nonzero().flatten() for group in range(count)]


class ReferenceEvaluation(Contender):
    """Training of one network on a condensed set, and its test, by the plain loop.

    Args:
        case: the sizes.
        device: where to run.
        augmentation: DSA strategy, or None.
    """

    def __init__(self, case: Case, device: torch.device, augmentation: str | None) -> None:
        self._case = case
        self._device = device
        self._data = random_images(case, device)
        self._recipe = recipe(case, augmentation)
        self._synthetic = synthetic_set(case, device)
        self._network: nn.Module

    def run(self) -> None:
        """Train and test; the same network on every run."""
        images, labels = self._synthetic
        test = self._data.test
        test_images = torch.cat(
            [
                _normalised(batch, self._data.mean, self._data.std)
                for batch in torch.split(test.images, self._recipe.batch_size)
            ]
        )
        orders, generators = [], []
        for epoch in range(self._case.epochs):
            order = numpy_generator(SEED, "evaluation/order", epoch, 0).permutation(len(images))
            orders.append(torch.from_numpy(order).to(self._device))
            generators.append(
                torch_generator(self._device, SEED, "evaluation/augmentation", epoch, 0)
            )

        def augment(batch: Tensor, epoch: int, _: int) -> Tensor:
            assert self._recipe.augmentation is not None
            names = self._recipe.augmentation.split("_")
            generator = generators[epoch]
            chosen = torch.randint(len(names), (1,), generator=generator, device=self._device)
            numbers = torch.rand(1, len(batch), 3, generator=generator, device=self._device)
            return reference_augmentation.apply_per_sample(
                batch, names[int(chosen)], numbers[0].tolist()
            )

        self._network = _network(self._case, self._device, "evaluation/network")
        _evaluate_synset(
            self._network,
            images,
            labels,
            test_images,
            test.labels.to(self._device),
            # The loop runs one epoch more than it is told, as the published script does.
            self._case.epochs - 1,
            orders,
            None if self._recipe.augmentation is None else augment,
            self._recipe.lr,
            self._recipe.momentum,
            self._recipe.weight_decay,
            self._recipe.batch_size,
        )

    def outcome(self) -> dict[str, float]:
        """Losses of the trained network."""
        return losses(self._network, self._synthetic, self._data)
