"""The checkpoint from which a run goes on."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dam_lightning.files import is_rehearsal, run_folder

__all__ = ["LastCheckpoint"]


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` in the run's folder: the state at the end of every epoch and of the fit.

    An epoch has as many steps as the data module's ``steps_per_epoch``. A fit that is asked to end,
    by SIGTERM as from a scheduler, saves after the step it is in. (Lightning's `ModelCheckpoint`
    writes its last checkpoint only where it writes another one too.)
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save; the last epoch may have been cut short."""
        self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save a fit that was asked to end; Lightning raises that between two steps."""
        if (
            not isinstance(exception, SIGTERMException)
            or trainer.state.stage != RunningStage.TRAINING
        ):
            return
        self._save(trainer)
        path = run_folder(trainer) / "last.ckpt"
        rank_zero_info(
            f"Ended by SIGTERM after step {trainer.global_step}; {path} goes on from there"
        )

    def _save(self, trainer: Trainer) -> None:
        path = run_folder(trainer) / "last.ckpt"
        if not is_rehearsal(trainer):
            trainer.save_checkpoint(path, weights_only=False)
