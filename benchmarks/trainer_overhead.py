"""What a Trainer adds to a step, measured where steps are short."""

import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer

from benchmarks.cases import CASES, Case
from benchmarks.data import RandomImages
from benchmarks.machine import synchronise
from benchmarks.package_side import PackageStep, condenser

__all__ = ["TrainerOverhead", "trainer_overhead"]

# The Trainer's share of a step does not depend on sizes; in a full step it drowns in noise.
_CASE = replace(CASES["cifar10_ipc1"], width=4, batch_real=4)
_STEPS = 15
_ROUNDS = 4


class TrainerOverhead(NamedTuple):
    """Medians over steps of DM+DAM on a very small network.

    Attributes:
        fit: seconds of a step within ``Trainer.fit``.
        bare: seconds of a step as the benchmarks time it.
    """

    fit: float
    bare: float


class _Clock(Callback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        synchronise(pl_module.device)
        self.times.append(time.perf_counter())

    def durations(self) -> list[float]:
        """Seconds between the ends of steps that follow each other."""
        return [end - start for start, end in zip(self.times, self.times[1:], strict=False)]


def trainer_overhead(device: torch.device) -> TrainerOverhead:
    """Time steps within a Trainer, with its usual logger, and bare ones, in turns."""
    threads = torch.get_num_threads()
    # Such small tensors are not worth sharing out, and waiting for a second thread on a busy
    # machine can take longer than the step.
    torch.set_num_threads(1)
    fit: list[float] = []
    bare: list[float] = []
    try:
        for _ in range(_ROUNDS):
            fit += _fitted(_CASE, device)
            step = PackageStep(_CASE, device, dam=True)
            clock = _Clock()
            for _ in range(_STEPS):
                step.run()
                synchronise(device)
                clock.times.append(time.perf_counter())
            bare += clock.durations()
    finally:
        torch.set_num_threads(threads)
    return TrainerOverhead(statistics.median(fit), statistics.median(bare))


def _fitted(case: Case, device: torch.device) -> list[float]:
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            max_steps=_STEPS,
            callbacks=[clock],
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(condenser(case, dam=True), datamodule=RandomImages(case, folder))
    return clock.durations()
