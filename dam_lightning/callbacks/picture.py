"""Pictures of a condensation: the condensed set, its masks, and the pseudo-domains of the data."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from dam_lightning.callbacks.drawing import condensed_picture, mask_picture, view_picture
from dam_lightning.callbacks.drawing_domains import pseudo_domain_picture
from dam_lightning.callbacks.publishing import publish
from dam_lightning.functional import domain_weights
from dam_lightning.methods.base import Condenser

__all__ = ["CondensedPicture", "MaskPictures", "PseudoDomainPicture"]

_ROWS = 10


class _LearningPictures(Callback, ABC):
    """Pictures of what is being learned, drawn now and then and at the end of a fit.

    Args:
        every_n_steps: steps from one drawing to the next, counted over the whole run, so that
            TensorBoard shows how the pictures come about; None: only at the end.

    Raises:
        ValueError: if ``every_n_steps`` is below 1.
    """

    def __init__(self, every_n_steps: int | None = 1000) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1 or None, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._drawn_at: int | None = None

    @abstractmethod
    def _draw(self, condenser: Condenser) -> Mapping[str, Image.Image]:
        """Pictures of the present state, by the names of their files."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier fit."""
        self._drawn_at = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw, where it is time to."""
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            self._publish(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what came out, unless the last step was just drawn."""
        if self._drawn_at != trainer.global_step:
            self._publish(trainer, pl_module)

    def _publish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, Condenser):
            publish(trainer, lambda: self._draw(pl_module))
            self._drawn_at = trainer.global_step


class CondensedPicture(_LearningPictures):
    """Keeps ``condensed.png`` in the run's folder: the condensed set, a column for each class.

    Args:
        every_n_steps: steps from one drawing to the next, counted over the whole run, so that
            TensorBoard shows how the images come about; None: only at the end of the fit.

    Raises:
        ValueError: if ``every_n_steps`` is below 1.
    """

    def _draw(self, condenser: Condenser) -> Mapping[str, Image.Image]:
        condensed = condenser.condensed_set()
        return {"condensed": condensed_picture(condensed.pixels(), condensed.labels)}


class MaskPictures(_LearningPictures):
    """Keeps ``masks.png`` and ``views.png`` in the run's folder: what DAM makes of the images.

    Both show the first image of each of the first 10 classes. Without DAM, or with a DAM whose
    weight is 0, there is nothing to show.

    Args:
        every_n_steps: steps from one drawing to the next, counted over the whole run, so that
            TensorBoard shows how the masks come about; None: only at the end of the fit.

    Raises:
        ValueError: if ``every_n_steps`` is below 1.
    """

    def _publish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _learns_masks(pl_module):
            super()._publish(trainer, pl_module)

    def _draw(self, condenser: Condenser) -> Mapping[str, Image.Image]:
        assert condenser.dam is not None
        condensed = condenser.condensed_set()
        labels = condensed.labels.tolist()
        shown = torch.tensor([labels.index(label) for label in sorted(set(labels))[:_ROWS]])
        names = [condensed.class_names[labels[row]] for row in shown.tolist()]
        # Only what is shown: the masks are many times larger than the images.
        logits = condenser.dam.logits.detach()[shown.to(condenser.dam.logits.device)]
        weights = domain_weights(logits.float().cpu(), condenser.dam.temperature)
        return {
            "masks": mask_picture(condensed.pixels()[shown], weights, names),
            "views": view_picture(condensed.images[shown], weights, condensed.denormalise, names),
        }


class PseudoDomainPicture(Callback):
    """Leaves ``pseudo_domains.png`` in the run's folder when a fit begins.

    It shows real images of each pseudo-domain and the scores that they were cut by. The data module
    needs what `ResidentDataModule` has: ``pseudo_domains`` and ``train.images``. With
    ``pseudo_domain_scores`` that are not None their histogram is shown too, and with
    ``train.domains`` and several ``domain_names`` the agreement with the true domains: ARI, NMI
    and the table of both. Data without pseudo-domains have no picture.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw it."""
        data = getattr(trainer, "datamodule", None)
        publish(trainer, lambda: self._draw(data, expected=_learns_masks(pl_module)))

    def _draw(self, data: Any, expected: bool) -> Mapping[str, Image.Image]:
        train: Any = getattr(data, "train", None)
        pseudo_domains = getattr(data, "pseudo_domains", None)
        if pseudo_domains is None and not expected:
            return {}
        if pseudo_domains is None or not hasattr(train, "images"):
            rank_zero_info(
                "No picture of the pseudo-domains: the data module lacks one of pseudo_domains and "
                "train.images"
            )
            return {}
        labelling = getattr(data, "pseudo_labelling", None)
        words = labelling and {
            "score_name": labelling.score_name,
            "description": labelling.description,
        }
        picture = pseudo_domain_picture(
            train.images,
            # Asked for last: without pseudo-domains nobody has paid for the scores yet.
            getattr(data, "pseudo_domain_scores", None),
            pseudo_domains,
            getattr(train, "domains", None),
            getattr(data, "domain_names", ()),
            **(words or {}),
        )
        return {"pseudo_domains": picture}


def _learns_masks(pl_module: LightningModule) -> bool:
    return (
        isinstance(pl_module, Condenser) and pl_module.dam is not None and pl_module.dam.weight > 0
    )
