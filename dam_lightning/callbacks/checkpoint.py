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

    def __init__(self) -> None:
        self._saved: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is saved yet."""
        self._saved = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save; the last epoch may have been cut short."""
        self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save a fit that was asked to end by SIGTERM, which Lightning raises between two steps.

        Then, and on Ctrl+C, which may come within one, tell what goes on from where.
        """
        asked = isinstance(exception, SIGTERMException)
        if asked and trainer.state.stage == RunningStage.TRAINING:
            self._save(trainer)
        if self._saved is not None and (asked or isinstance(exception, KeyboardInterrupt)):
            path = run_folder(trainer) / "last.ckpt"
            rank_zero_info(
                f"The run ended early: the same command with --ckpt_path {path} goes on after step "
                f"{self._saved}"
            )

    def _save(self, trainer: Trainer) -> None:
        path = run_folder(trainer) / "last.ckpt"
        if not is_rehearsal(trainer):
            trainer.save_checkpoint(path, weights_only=False)
            self._saved = trainer.global_step
