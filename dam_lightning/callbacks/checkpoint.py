"""The checkpoint from which a run goes on."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dam_lightning.files import is_rehearsal, run_folder

__all__ = ["LastCheckpoint"]


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` in the run's folder: the state at the end of every epoch and of the fit.

    An epoch has as many steps as the data module's ``steps_per_epoch``. A fit that is asked to end,
    by SIGTERM as from a scheduler, saves after the step it is in, or within a validation, which is
    then passed over when the run goes on. (Lightning's `ModelCheckpoint` writes its last checkpoint
    only where it writes another one too.)
    """

    def __init__(self) -> None:
        self._saved: int | None = None
        self._has_begun = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing is saved yet."""
        self._saved, self._has_begun = None, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on there is something to save."""
        self._has_begun = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save; the last epoch may have been cut short."""
        self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save a fit that was asked to end by SIGTERM, which is raised between two steps.

        Then, and on Ctrl+C, which may come within one, tell what goes on from where.
        """
        asked = isinstance(exception, SIGTERMException)
        if trainer.state.fn != TrainerFn.FITTING or not self._has_begun:
            return
        if asked and trainer.state.stage in (RunningStage.TRAINING, RunningStage.VALIDATING):
            self._save(trainer)
        if not (asked or isinstance(exception, KeyboardInterrupt)):
            return
        path = run_folder(trainer) / "last.ckpt"
        if self._saved is None:
            rank_zero_info(
                f"The run ended early, after step {trainer.global_step} and before its first "
                "checkpoint: there is nothing to go on from. There is one after every epoch, of "
                "as many steps as --data.steps_per_epoch says"
            )
        else:
            rank_zero_info(
                f"The run ended early: the same command with --ckpt_path {path} goes on after step "
                f"{self._saved}"
            )

    def _save(self, trainer: Trainer) -> None:
        path = run_folder(trainer) / "last.ckpt"
        if not is_rehearsal(trainer):
            trainer.save_checkpoint(path, weights_only=False)
            self._saved = trainer.global_step
