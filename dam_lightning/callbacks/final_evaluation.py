"""The evaluation protocol at the end of a fit."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dam_lightning.data.sampling import random_images
from dam_lightning.evaluation.evaluator import evaluate
from dam_lightning.evaluation.table import print_scores
from dam_lightning.files import is_rehearsal
from dam_lightning.methods.base import Condenser

__all__ = ["FinalEvaluation"]


class FinalEvaluation(Callback):
    """Evaluates what a fit condensed, beside as many random real images, and prints both.

    Condensed images are trained on by the module's recipe, random real ones by its protocol, which
    is the same unless the method learned a step size for its images. The result chooses nothing.

    Args:
        random: whether to evaluate random real images too, drawn anew for each network.
    """

    def __init__(self, random: bool = True) -> None:
        self.random = random

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the protocol.

        Raises:
            TypeError: if the module is no `Condenser`.
        """
        if is_rehearsal(trainer):
            return
        if not isinstance(pl_module, Condenser):
            raise TypeError(f"FinalEvaluation is for a Condenser, not {type(pl_module).__name__}")
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        # The strategy has already moved the module off the accelerator.
        device = trainer.strategy.root_device
        pl_module.to(device)

        def random_set(number: int) -> tuple[Tensor, Tensor]:
            key = (pl_module.seed, "evaluation/random", number)
            return random_images(data, pl_module.ipc, *key).to(device), pl_module.labels

        sets = {pl_module.label: (pl_module.training_set, pl_module.recipe)}
        if self.random:
            sets["random real images"] = (random_set, pl_module.protocol)
        rows = {}
        for name, (training_set, recipe) in sets.items():
            rank_zero_info(f"Training {recipe.num_networks} networks on {name}")
            rows[name] = evaluate(
                training_set,
                data.test_dataloader(),
                data.num_classes,
                len(data.domain_names),
                recipe,
                pl_module.seed,
                rank=trainer.global_rank,
                world_size=trainer.world_size,
            )
        if trainer.is_global_zero:
            recipe = pl_module.protocol
            title = (
                f"{type(data).__name__}, {pl_module.ipc} image(s) per class, "
                f"{recipe.num_networks} {recipe.backbone}s of {recipe.epochs} epochs"
            )
            print_scores(rows, data.domain_names, title)
