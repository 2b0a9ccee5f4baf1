"""The plain loops of ``tests/reference`` for DM and the evaluation as contenders."""

import importlib

import torch
from torch import Tensor, nn

from benchmarks.cases import SEED, Case
from benchmarks.contender import Contender
from benchmarks.data import random_images
from benchmarks.package_side import condenser, losses, recipe, synthetic_set
from benchmarks.package_step import step_outcome
from benchmarks.reference_inputs import RealGroups, fresh_network, normalised
from benchmarks.reference_state import Learned
from dam_lightning.functional import DSA
from dam_lightning.randomness import numpy_generator, torch_generator
from tests.reference import augmentation as reference_augmentation
from tests.reference import dm

# By name, because it is not typed as strictly as the benchmarks that call it.
_evaluate_synset = importlib.import_module("tests.reference.evaluation").evaluate_synset

__all__ = ["ReferenceEvaluation", "ReferenceStep"]


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
        self._real = RealGroups(case, device, dam)
        self._learned = Learned(condenser(case, dam).to(device))
        self._step = 0
        self._loss: float

    def run(self) -> None:
        """One step: inputs, losses and gradients, SGD."""
        learned = self._learned
        # Frozen, as the published script does it; else the real images would get a graph.
        network = fresh_network(self._case, self._device, "network", self._step)
        network.requires_grad_(False)
        result = dm.dm_step(
            learned.images,
            self._case.ipc,
            learned.logits,
            learned.weight,
            learned.temperature,
            network.embed,
            self._real.images("class", self._step),
            self._real.images("domain", self._step),
            self._augmentation("class"),
            self._augmentation("domain"),
        )
        self._loss = result.loss_class.item() + learned.weight * result.loss_domain.item()
        learned.update(result.grad_images, result.grad_logits)
        self._step += 1

    def _augmentation(self, branch: str) -> list[dm.Augmentation]:
        """One operation with its numbers for each group."""
        names = DSA.split("_")
        drawn = []
        for group in range(self._real.count(branch)):
            generator = numpy_generator(SEED, f"augmentation/{branch}", self._step, group)
            drawn.append((names[int(generator.choice(len(names)))], generator.random(3).tolist()))
        return drawn

    def outcome(self) -> dict[str, float]:
        """Loss of the step, and where the images are after it."""
        return step_outcome(self._loss, self._learned.images, self._learned.start)


class ReferenceEvaluation(Contender):
    """Training of the networks on a condensed set, and their test, one after another.

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
        self._networks: list[nn.Module] = []

    def run(self) -> None:
        """Train and test; the same networks on every run."""
        test = self._data.test
        test_images = torch.cat(
            [
                normalised(batch, self._data.mean, self._data.std)
                for batch in torch.split(test.images, self._recipe.batch_size)
            ]
        )
        test_labels = test.labels.to(self._device)
        self._networks = [
            self._trained(number, test_images, test_labels) for number in range(self._case.networks)
        ]

    def _trained(self, number: int, test_images: Tensor, test_labels: Tensor) -> nn.Module:
        """A network, after its test."""
        images, labels = self._synthetic
        orders, generators = [], []
        for epoch in range(self._case.epochs):
            order = numpy_generator(SEED, "evaluation/order", epoch, number)
            orders.append(torch.from_numpy(order.permutation(len(images))).to(self._device))
            generators.append(
                torch_generator(self._device, SEED, "evaluation/augmentation", epoch, number)
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

        network = fresh_network(self._case, self._device, "evaluation/network", group=number)
        _evaluate_synset(
            network,
            images,
            labels,
            test_images,
            test_labels,
            # The loop runs one epoch more than it is told, as the published script does.
            self._case.epochs - 1,
            orders,
            None if self._recipe.augmentation is None else augment,
            self._recipe.lr,
            self._recipe.momentum,
            self._recipe.weight_decay,
            self._recipe.batch_size,
        )
        return network

    def outcome(self) -> dict[str, float]:
        """Losses of the trained networks."""
        return losses(self._networks, self._synthetic, self._data)
