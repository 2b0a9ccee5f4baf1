"""The package's contender for the training of experts."""

import tempfile
from copy import copy
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cases import SEED, Case
from benchmarks.contender import Contender
from benchmarks.data import RandomImages, random_images
from dam_lightning.methods.expert_recipe import ExpertData, ExpertRecipe
from dam_lightning.methods.expert_store import ExpertStore
from dam_lightning.methods.expert_training import train_experts

__all__ = ["PackageExperts", "expert_images", "expert_outcome", "expert_recipe"]

_EPOCHS = 1


def expert_images(case: Case, device: torch.device) -> RandomImages:
    """As many training images as fill the batches of a case's experts."""
    # Others have the same data.
    data = copy(random_images(case, device))
    wanted = case.expert_batches * case.batch_real
    data.train = data.train.subset(torch.arange(len(data.train)) < wanted)
    return data


def expert_recipe(case: Case) -> ExpertRecipe:
    """The published one without augmentation, with the batches of a case."""
    return ExpertRecipe(
        backbone_args=case.backbone_args,
        augmentation=None,
        batch_size=case.batch_real,
        seed=SEED,
    )


def expert_outcome(trajectories: list[Tensor]) -> dict[str, float]:
    """Where training has led experts, from (epochs + 1, P) of each."""
    ways = torch.stack([trajectory[-1] - trajectory[0] for trajectory in trajectories])
    return {"distance of the experts": float(ways.norm())}


class PackageExperts(Contender):
    """One epoch of some experts, which are new in every run, and their files.

    Args:
        case: the sizes.
        device: where to run.
        compile: as of `train_experts`.
    """

    def __init__(self, case: Case, device: torch.device, compile: bool = False) -> None:
        self._data = ExpertData(expert_images(case, device), None, device)
        self._recipe = expert_recipe(case)
        self._experts = case.experts
        self._compile = compile
        self._folder = tempfile.TemporaryDirectory()
        description = self._data.describe(self._recipe)
        size = self._data.network(self._recipe, 0).size
        self._store = ExpertStore(Path(self._folder.name), description, size)
        self._turns = count()
        self._last = range(0)

    def run(self) -> None:
        """Train new experts."""
        start = next(self._turns) * self._experts
        self._last = range(start, start + self._experts)
        for _ in train_experts(
            self._store,
            self._data,
            self._recipe,
            self._last,
            _EPOCHS,
            compile=self._compile,
        ):
            pass

    def outcome(self) -> dict[str, float]:
        """Where the experts of the last run are."""
        return expert_outcome([self._store.parameters(n, slice(None)) for n in self._last])
