"""The experts of one kind: where they are, training those that are missing, reading them."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dam_lightning.ending import end_if_asked, listen_to_sigterm
from dam_lightning.flat_network import FlatNetwork
from dam_lightning.methods.expert_recipe import ExpertData, ExpertRecipe
from dam_lightning.methods.expert_store import ExpertStore
from dam_lightning.methods.expert_training import ExpertEpoch, train_experts

__all__ = ["ExpertSet"]


class ExpertSet:
    """Experts 0 to count - 1 of one kind.

    Args:
        data: what they learn.
        recipe: how they are trained.
        count: how many.
        folder: where users want them, in it one folder for each kind; None: one in the cache.
        compile: compile their training; None: where it is long enough to pay for it.

    Raises:
        ValueError: if the backbone cannot be an expert.
    """

    def __init__(
        self,
        data: ExpertData,
        recipe: ExpertRecipe,
        count: int,
        folder: str | None,
        compile: bool | None,
    ) -> None:
        self._data = data
        self._recipe = recipe
        self._compile = compile
        self._folder_is_given = folder is not None
        self.count = count
        self.network: FlatNetwork = data.network(recipe, 0)
        where = (
            data.default_folder(recipe) if folder is None else Path(folder).expanduser() / data.kind
        )
        self.store = ExpertStore(where, data.describe(recipe), self.network.size)

    def missing(self, epochs: int) -> list[int]:
        """Numbers of the experts that are not there, or were not trained for so long.

        Raises:
            ValueError: if a file is damaged or another expert's.
        """
        trained = {number: self.store.epochs(number) for number in range(self.count)}
        return [number for number, done in trained.items() if done is None or done < epochs]

    def check_epochs(self, epochs: int, reason: str) -> None:
        """Refuse experts in a folder of the user's that were trained for too short.

        Those in the cache are trained on.

        Args:
            epochs: needed.
            reason: what for.

        Raises:
            ValueError: there are such.
        """
        for number in range(self.count):
            done = self.store.epochs(number)
            if self._folder_is_given and done is not None and done < epochs:
                raise ValueError(
                    f"the experts in {self.store.folder} were trained {done} epochs, but {reason} "
                    f"read {epochs}: train them on with Experts and epochs: {epochs}, or lower "
                    "max_start_epoch"
                )

    def train(
        self, numbers: Sequence[int], epochs: int, max_images: int | None = None
    ) -> Iterator[ExpertEpoch]:
        """Train some experts; see `train_experts`."""
        return train_experts(
            self.store, self._data, self._recipe, numbers, epochs, max_images, self._compile
        )

    def train_with_progress(self, numbers: Sequence[int], epochs: int, show: bool) -> None:
        """The same to its end, with a bar on the standard error where it is a terminal."""
        rank_zero_info(
            f"Training {len(numbers)} {self._data.kind} experts for {epochs} epochs; they are kept "
            f"in {self.store.folder}"
        )
        progress = Progress(
            TextColumn("Expert epochs"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=Console(stderr=True),
            disable=not show,
        )
        with progress, _ending_on_sigterm():
            left = sum(epochs - (self.store.epochs(number) or 0) for number in numbers)
            task = progress.add_task("", total=left, loss="")
            for done in self.train(numbers, epochs):
                progress.update(task, advance=len(done.numbers), loss=f"loss {done.loss:.3f}")

    def segment(self, number: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Parameters of an expert after two of its epochs, (P,) each, on the CPU.

        Raises:
            ValueError: if they are not finite.
        """
        way = self.store.parameters(number, start), self.store.parameters(number, end)
        if not all(np.isfinite(parameters.numpy()).all() for parameters in way):
            raise ValueError(
                f"{self.store.path(number)} has parameters that are not finite: delete it, and it "
                "is trained again"
            )
        return way

    def classifier(self, number: int, epoch: int) -> Any:
        """An expert after an epoch, as a module."""
        network = self._data.network(self._recipe, number)
        vector = self.store.parameters(number, epoch)
        torch.nn.utils.vector_to_parameters(
            vector.to(network.initial()), network.module.parameters()
        )
        return network.module.eval()


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """End in words where the Trainer does not listen yet, because modules are being set up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before: dict[int, Any] = {signal.SIGTERM: listen_to_sigterm()}
    if SLURMEnvironment.detect():
        # There is no step yet from which the job, queued again, would go on.
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield
        end_if_asked()
    except SIGTERMException:
        rank_zero_info(
            "The run ended early: the same command trains the experts that are not finished"
        )
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
