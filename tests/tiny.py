"""A dataset of a few random images, and Trainers for it; importable from spawned processes."""

import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from dam_lightning.data import ResidentDataModule, Split

CLASS_SIZES = (4, 9, 20)
"""Training images of the three classes; the first has fewer than a batch."""

SMALL_NETWORK = {"width": 8, "depth": 2}
SMALL_RECIPE = {"num_networks": 2, "epochs": 2}


class TinyData(ResidentDataModule):
    """Three classes of 16x16 images in two domains, each class with a brightness of its own."""

    class_names = ("ant", "bee", "cow")
    domain_names = ("plain", "stripes")
    mean = (0.5, 0.4, 0.3)
    std = (0.2, 0.25, 0.3)

    def __init__(self, batch_real: int = 6, steps_per_epoch: int = 4, **options: Any) -> None:
        super().__init__(batch_real=batch_real, steps_per_epoch=steps_per_epoch, **options)

    def load_splits(self) -> Mapping[str, Split]:
        return {"train": _split(CLASS_SIZES, 0), "test": _split((5, 4, 3), 1)}


def _split(sizes: tuple[int, ...], seed: int) -> Split:
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    domains = np.arange(len(labels)) % 2
    brightness = (60 + 60 * labels + 40 * domains)[:, None, None, None]
    pixels = generator.normal(brightness, 30, (len(labels), 3, 16, 16)).clip(0, 255)
    return Split(
        torch.from_numpy(pixels.astype(np.uint8)),
        torch.from_numpy(labels),
        torch.from_numpy(domains),
        [f"{number}" for number in range(len(labels))],
    )


def tiny_data(folder: Path, **options: Any) -> TinyData:
    """Ready to use, with its cache in ``folder``."""
    data = TinyData(cache_dir=str(folder / "cache"), **options)
    data.prepare_data()
    data.setup()
    return data


class LeaveTogether(Callback):
    """Ends the process group while all processes are alive.

    Lightning leaves gloo's to the exit of the process, where its threads now and then abort it.
    """

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()


class FromTheServer(DDPStrategy):
    """Starts processes from one that has everything imported, in a tenth of a second.

    Spawned ones, as of ``ddp_spawn``, import everything for ten seconds. They are less alike: these
    share the environment, hashes and generators of the one they come from.
    """

    def __init__(self) -> None:
        multiprocessing.set_forkserver_preload([__name__])
        super().__init__(start_method="forkserver")

    def setup_environment(self) -> None:
        super().setup_environment()
        assert self.model is not None
        # Otherwise all have the same memory; of spawned ones Lightning sees to that.
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            tensor.data = tensor.data.clone()


def two_processes(folder: Path, **options: Any) -> Trainer:
    """A Trainer that starts two CPU processes."""
    options = {
        "devices": 2,
        "strategy": FromTheServer(),
        "callbacks": [LeaveTogether()],
        **options,
    }
    return tiny_trainer(folder, **options)


def tiny_trainer(folder: Path, **options: Any) -> Trainer:
    """A quiet CPU Trainer that writes into ``folder``."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    options = {"accelerator": "cpu", "devices": 1, **quiet, **options}
    return Trainer(default_root_dir=folder, **options)
