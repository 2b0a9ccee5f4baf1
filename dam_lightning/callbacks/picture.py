"""A picture of the condensed set."""

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from dam_lightning.condensed_set import CondensedSet
from dam_lightning.files import is_rehearsal, run_folder, written_beside
from dam_lightning.methods.base import Condenser

__all__ = ["CondensedPicture", "save_picture"]

_PER_CLASS = 10
_CLASSES = 50


class CondensedPicture(Callback):
    """Saves ``condensed.png`` in the run's folder when a condensation ends."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save it, after the set itself."""
        folder = run_folder(trainer)
        if is_rehearsal(trainer):
            return
        if isinstance(pl_module, Condenser) and trainer.is_global_zero:
            save_picture(pl_module.condensed_set(), folder / "condensed.png")


def save_picture(condensed: CondensedSet, path: Path) -> None:
    """Save a grid, classes from left to right and their images below each other.

    At most the first 10 images of the first 50 classes are shown.
    """
    pixels, labels = condensed.pixels(), condensed.labels
    columns = [pixels[labels == label][:_PER_CLASS] for label in range(len(condensed.class_names))]
    columns = [column for column in columns if len(column) > 0][:_CLASSES]
    rows = max(len(column) for column in columns)
    tiles = [
        column[row] if row < len(column) else column.new_ones(column.shape[1:])
        for row in range(rows)
        for column in columns
    ]
    grid = make_grid(tiles, nrow=len(columns), padding=2, pad_value=1)
    picture = to_pil_image(grid)
    # Small images are enlarged by whole pixels, to be seen without a magnifying glass.
    zoom = max(1, 128 // pixels.shape[-1]) if len(columns) <= 20 else 1
    picture = picture.resize((picture.width * zoom, picture.height * zoom), resample=0)
    with written_beside(path) as beside:
        picture.save(beside, format="PNG")
