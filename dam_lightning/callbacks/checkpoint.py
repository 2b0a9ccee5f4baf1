"""The checkpoint from which a run goes on."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from dam_lightning.files import is_rehearsal, run_folder

__all__ = ["LastCheckpoint"]


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` in the run's folder: the state at the end of every epoch and of the fit.

    An epoch has as many steps as the data module's ``steps_per_epoch``. (Lightning's
    `ModelCheckpoint` writes its last checkpoint only where it writes another one too.)
    """

    def __init__(self) -> None:
        self._saved_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier fit."""
        self._saved_step = -1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, if the last epoch was cut short."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        path = run_folder(trainer) / "last.ckpt"
        if not is_rehearsal(trainer) and trainer.global_step != self._saved_step:
            trainer.save_checkpoint(path)
            self._saved_step = trainer.global_step
