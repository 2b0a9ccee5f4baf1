"""The closing table of a condensation."""

import time
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table

from dam_lightning.files import is_rehearsal, run_folder
from dam_lightning.methods.base import Condenser

__all__ = ["RunSummary"]


class RunSummary(Callback):
    """Says what a condensation did, how long it took, and where its files are."""

    def __init__(self) -> None:
        # A resumed run that has no step left never starts to train.
        self._seconds, self._steps = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start, self._first_step = time.monotonic(), trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it."""
        self._seconds = time.monotonic() - self._start
        self._steps = trainer.global_step - self._first_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        folder = run_folder(trainer)
        if not (trainer.is_global_zero and isinstance(pl_module, Condenser)):
            return
        if is_rehearsal(trainer):
            return
        table = Table(title="Condensed", show_header=False)
        table.add_row("method", pl_module.label)
        table.add_row("images", f"{len(pl_module.labels)}, {pl_module.ipc} per class")
        resumed = (
            f"{trainer.global_step}, of them now " if trainer.global_step > self._steps else ""
        )
        table.add_row("steps", f"{resumed}{self._steps} in {self._seconds:.0f} s")
        loss = trainer.callback_metrics.get("loss")
        if loss is not None:
            table.add_row("last loss", f"{float(loss):.4g}")
        console = Console()
        console.print(table)
        # Below the table, which would cut long paths: they are there to be copied.
        for name, file in (
            ("condensed set", "condensed.safetensors"),
            ("picture", "condensed.png"),
            ("masks", "masks.png"),
            ("views", "views.png"),
            ("pseudo-domains", "pseudo_domains.png"),
            ("checkpoint", "last.ckpt"),
        ):
            path = folder / file
            if path.exists():
                _print(console, name, path)
        # Lightning's, which a user has it look for.
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if best:
            _print(console, "best", Path(best))


def _print(console: Console, name: str, path: Path) -> None:
    console.print(f"{name + ':':16}{_shortest(path)}", soft_wrap=True, highlight=False)


def _shortest(path: Path) -> Path:
    """Relative to the working directory, where it lies in it."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
