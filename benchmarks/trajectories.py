"""Trajectories of experts that were never trained: what they are costs a student nothing."""

from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.cases import SEED, Case
from benchmarks.data import RandomImages
from dam_lightning.methods.expert_recipe import ExpertData, ExpertRecipe
from dam_lightning.methods.expert_store import ExpertStore
from dam_lightning.randomness import torch_generator

__all__ = ["COUNT", "EXPERT_EPOCHS", "MAX_START_EPOCH", "random_trajectories"]

COUNT = 2
"""Experts of each kind: more than one, so that drawing is drawing."""

EXPERT_EPOCHS = 1
MAX_START_EPOCH = 2

_STRIDE = 1.0
"""Length of an expert's way in an epoch, whatever its width: of the order of a student's, so that
the loss is, too."""


def random_trajectories(
    case: Case,
    data: RandomImages,
    folder: Path,
    device: torch.device,
    num_domains: int | None,
    augmentation: str | None = None,
) -> ExpertStore:
    """Write experts of one kind where MTT looks for them.

    Args:
        case: the sizes.
        data: what they could have been trained on.
        folder: for all kinds.
        device: where their networks are made.
        num_domains: None: of the classes.
        augmentation: that they claim to have been trained with.
    """
    of_data = ExpertData(data, num_domains, device)
    recipe = ExpertRecipe(backbone_args=case.backbone_args, augmentation=augmentation)
    size = of_data.network(recipe, 0).size
    store = ExpertStore(folder / of_data.kind, of_data.describe(recipe), size)
    for number in range(COUNT):
        generator = torch_generator("cpu", SEED, f"benchmarks/{of_data.kind}", 0, number)
        epochs = MAX_START_EPOCH - 1 + EXPERT_EPOCHS
        strides = F.normalize(torch.randn(epochs, size, generator=generator)) * _STRIDE
        start = of_data.network(recipe, number).initial().cpu()
        store.save(number, torch.cat([start.unsqueeze(0), start + strides.cumsum(dim=0)]))
    return store
