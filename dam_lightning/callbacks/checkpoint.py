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

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save; the last epoch may have been cut short."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        path = run_folder(trainer) / "last.ckpt"
        if not is_rehearsal(trainer):
            trainer.save_checkpoint(path, weights_only=False)
