"""The command ``python -m benchmarks.processes``: steps that several processes share.

Each process has one thread, so that the ratio says what a further processor is good for.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from benchmarks.arguments import positive
from benchmarks.cases import CASES, Case
from benchmarks.data import RandomImages
from benchmarks.measure import be_quiet
from benchmarks.package_dc import dc_condenser
from benchmarks.package_side import condenser
from dam_lightning import Condenser

__all__ = ["main", "seconds_per_step"]

_WARM_UP = 2
_METHODS: dict[str, Callable[..., Condenser]] = {"DM": condenser, "DC": dc_condenser}


class _Clock(Callback):
    """Writes the moments at which the first process ends its steps into a file.

    A spawned process hands back nothing else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.set_num_threads(1)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            with self._path.open("a") as file:
                file.write(f"{time.perf_counter()}\n")


def seconds_per_step(case: Case, method: str, processes: int, steps: int) -> float:
    """The median over the steps of a fit, after two that are not counted.

    Args:
        case: the sizes.
        method: with DAM, uncompiled.
        processes: that share the work, on the CPU.
        steps: that are timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "times.txt")
        trainer = Trainer(
            accelerator="cpu",
            devices=processes,
            strategy="ddp_spawn",
            max_steps=_WARM_UP + steps,
            callbacks=[_Clock(path)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(_METHODS[method](case, dam=True), datamodule=RandomImages(case, folder))
        times = [float(line) for line in path.read_text().split()]
    ends = times[_WARM_UP - 1 :]
    return statistics.median(end - start for start, end in pairwise(ends))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.processes",
        description="Time steps with DAM on 1 and more processes of one thread each.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--case", choices=CASES, default="cifar10_ipc1", help="the sizes")
    add("--method", choices=_METHODS, default="DM", help="with DAM")
    add("--processes", type=positive, nargs="+", default=[1, 2], help="numbers of processes")
    add("--steps", type=positive, default=7, help="that are timed")
    add("--batch-real", type=positive, default=Case.batch_real, help="real images of each group")
    add("--width", type=positive, default=Case.width, help="channels of the ConvNet")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Print a line for each number of processes, with the ratio to the first."""
    options = _parse(arguments)
    be_quiet()
    # Loops of DC as short as they are timed elsewhere.
    case = CASES[options.case].on(torch.device("cpu"))
    case = replace(case, batch_real=options.batch_real, width=options.width)
    first: float | None = None
    for processes in options.processes:
        seconds = seconds_per_step(case, options.method, processes, options.steps)
        first = first or seconds
        print(f"{processes} processes: {seconds:.3f} s a step, {first / seconds:.2f}x", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
