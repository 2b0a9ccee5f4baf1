"""The plain loop that trains experts as a contender."""

import importlib
from itertools import count

import torch
from torch import Tensor

from benchmarks.cases import SEED, Case
from benchmarks.contender import Contender
from benchmarks.package_experts import expert_images, expert_outcome, expert_recipe
from benchmarks.reference_inputs import fresh_network, normalised
from dam_lightning.randomness import numpy_generator

# By name, because what it imports is not typed as strictly as the benchmarks.
_train_expert = importlib.import_module("tests.reference.experts").train_expert

__all__ = ["ReferenceExperts"]

_EPOCH = 1


class ReferenceExperts(Contender):
    """One epoch of some experts, one after another; new ones in every run.

    Args:
        case: the sizes.
        device: where to run.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        self._case = case
        self._device = device
        self._recipe = expert_recipe(case)
        data = expert_images(case, device)
        # All at once, as the published script does it.
        self._images = normalised(data.train.images, data.mean, data.std)
        self._labels = data.train.labels.to(device)
        self._turns = count()
        self._trajectories: list[Tensor] = []

    def run(self) -> None:
        """Train new experts."""
        start = next(self._turns) * self._case.experts
        self._trajectories = [
            self._trained(number) for number in range(start, start + self._case.experts)
        ]

    def _trained(self, number: int) -> Tensor:
        """The trajectory of an expert, (2, P)."""
        network = fresh_network(self._case, self._device, "expert/class", group=number)
        order = numpy_generator(SEED, "expert/class/order", _EPOCH, number).permutation(
            len(self._labels)
        )
        trajectory = _train_expert(
            network,
            self._images,
            self._labels,
            [torch.from_numpy(order)],
            self._recipe.lr,
            self._recipe.batch_size,
        )
        return torch.stack(trajectory)

    def outcome(self) -> dict[str, float]:
        """Where the experts of the last run are."""
        return expert_outcome(self._trajectories)
