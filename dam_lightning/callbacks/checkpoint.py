"""The checkpoint from which a run goes on."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from dam_lightning.files import is_rehearsal, run_folder

__all__ = ["LastCheckpoint"]


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``, the newest state and no other, in the run's folder.

    Args:
        options: further arguments of `lightning.pytorch.callbacks.ModelCheckpoint`.
    """

    def __init__(self, **options: Any) -> None:
        # Without version numbers: "last" is to be the last, also in a folder used before.
        super().__init__(save_last=True, save_top_k=0, enable_version_counter=False, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle on the run's folder, which is known only now."""
        if self.dirpath is None:
            self.dirpath = str(run_folder(trainer))
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a last time; Lightning would also do so in a ``fast_dev_run``."""
        if not is_rehearsal(trainer):
            super().on_train_end(trainer, pl_module)
