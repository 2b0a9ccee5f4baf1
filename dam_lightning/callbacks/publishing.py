"""Where pictures of a run go: into its folder, and to TensorBoard."""

from collections.abc import Callable, Mapping

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from dam_lightning.files import is_rehearsal, run_folder, written_beside

__all__ = ["publish"]


def publish(trainer: Trainer, draw: Callable[[], Mapping[str, Image.Image]]) -> None:
    """Save pictures as ``NAME.png`` in the run's folder, and add them to TensorBoard.

    All ranks must call it; the first one draws. A rehearsal leaves nothing. No run depends on its
    pictures, and other processes would wait forever for one that failed: whatever goes wrong, such
    as a full disk, is a warning, and the run goes on.

    Args:
        trainer: of the run. Each of its loggers that is a `TensorBoardLogger` gets the pictures.
        draw: makes the pictures, by name.
    """
    folder = run_folder(trainer)
    if is_rehearsal(trainer) or not trainer.is_global_zero:
        return
    try:
        for name, picture in draw().items():
            with written_beside(folder / f"{name}.png") as beside:
                picture.save(beside, format="PNG")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(
                        name, np.asarray(picture), trainer.global_step, dataformats="HWC"
                    )
    except Exception as error:
        rank_zero_warn(f"A picture of the run is missing: {type(error).__name__}: {error}")
