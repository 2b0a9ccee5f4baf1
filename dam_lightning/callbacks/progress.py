"""Progress of a fit, counted in steps over the whole run."""

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["StepProgress"]

_REFRESH = 0.5
"""Seconds between updates: reading the loss makes the host wait for the device."""


class StepProgress(ProgressBar):
    """One bar from the first step to ``max_steps``, with the loss and the steps per second.

    Where the output is no terminal it prints a line now and then instead.

    Args:
        line_every: seconds between those lines.
    """

    def __init__(self, line_every: float = 30.0) -> None:
        super().__init__()
        self._line_every = line_every
        self._enabled = True
        self._progress: Progress | None = None

    def disable(self) -> None:
        """Show nothing (Lightning calls this on all ranks but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        super().on_train_start(trainer, pl_module)
        # Counted here: modules that optimise by themselves have no global step.
        self._first_step = self._step = trainer.global_step
        self._start = time.monotonic()
        self._shown = self._start
        if self._enabled and sys.stdout.isatty():
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._task = self._progress.add_task("", total=total, figures="")
            self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show how far it is."""
        self._step += 1
        now = time.monotonic()
        every = self._line_every if self._progress is None else _REFRESH
        if self._enabled and now - self._shown >= every:
            self._shown = now
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last step and stop."""
        if self._enabled and self._step > self._first_step:
            self._show(trainer, pl_module)
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop, so that the message is not drawn over."""
        self._stop()

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, elapsed = self._step, time.monotonic() - self._start
        figures = [f"{(step - self._first_step) / elapsed:.2f} steps/s"]
        for name, value in self.get_metrics(trainer, pl_module).items():
            if isinstance(value, int | float) and name != "v_num":
                figures.append(f"{name} {value:.4g}")
        text = ", ".join(figures)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, figures=text)
        else:
            of = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
            print(f"step {step}{of}, {text}", flush=True)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
