"""Random images in memory, served by the package's own data module: no dataset is needed."""

import tempfile
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from lightning import Trainer

from benchmarks.cases import SEED, Case
from dam_lightning.data import ResidentDataModule, Split

__all__ = ["RandomImages", "random_images"]

_DRAWN_FROM = 2
"""Training images of a class, in batches: more than one, so that drawing is drawing."""


class RandomImages(ResidentDataModule):
    """Images of a case's size and number of classes; every pixel is random.

    Args:
        case: the sizes.
        cache_dir: as for `ResidentDataModule`.
    """

    domain_names = ("all",)
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(self, case: Case, cache_dir: str) -> None:
        # An epoch that no benchmark sees the end of.
        super().__init__(
            batch_real=case.batch_real, steps_per_epoch=10**6, seed=SEED, cache_dir=cache_dir
        )
        self.case = case
        self.class_names = [str(number) for number in range(case.num_classes)]

    def load_splits(self) -> Mapping[str, Split]:
        """Noise, labelled in turn."""
        case = self.case
        each = max(_DRAWN_FROM * case.batch_real, case.ipc)
        return {
            "train": self._split(each * case.num_classes, 0),
            "test": self._split(case.num_test, 1),
        }

    def _split(self, count: int, seed: int) -> Split:
        pixels = np.random.default_rng(seed).integers(
            0, 256, (count, *self.case.image_shape), dtype=np.uint8
        )
        labels = torch.arange(count) % self.case.num_classes
        paths = [str(number) for number in range(count)]
        return Split(torch.from_numpy(pixels), labels, torch.zeros_like(labels), paths)


# The contenders of a task share one: they only read it.
@lru_cache(maxsize=1)
def random_images(case: Case, device: torch.device, domains: bool = False) -> RandomImages:
    """The data of a case on a device, cut into its pseudo-domains if they are wanted."""
    with tempfile.TemporaryDirectory() as folder:
        data = RandomImages(case, folder)
        # The data module asks its Trainer where images are wanted.
        data.trainer = Trainer(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            logger=False,
            enable_checkpointing=False,
        )
        data.setup()
        if domains:
            data.setup_domains(case.num_domains)
    return data
