"""Evaluation of a condensed set, or of random real images, by itself."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from dam_lightning.backbones import build_backbone
from dam_lightning.condensed_set import CondensedSet
from dam_lightning.data.sampling import random_images
from dam_lightning.evaluation.loop import EvaluatingModule
from dam_lightning.evaluation.recipe import Recipe, RecipeOptions
from dam_lightning.evaluation.training import train_network
from dam_lightning.functional import Whitening, same_whitening
from dam_lightning.randomness import run_seed

__all__ = ["Evaluation"]


class Evaluation(EvaluatingModule):
    """Trains fresh networks on a training set and tests them on the data module's real test images.

    ``test`` trains and tests; ``fit`` trains and keeps the networks in the checkpoint, which
    ``test`` then tests without training.

    Args:
        condensed: file of a `CondensedSet`, or ``"random"`` for real images drawn at random, anew
            for each network.
        ipc: images per class of ``"random"``; a file has its own.
        recipe: overrides of the recipe stored in the file (of the paper's protocol for
            ``"random"``), see `Recipe`.
        seed: key of all draws; None: the run's seed.
        ledger: CSV file to which ``test`` appends a row.

    Attributes:
        networks: the networks trained by ``fit``.

    Raises:
        ValueError: if ``ipc`` and ``condensed`` contradict each other, or the file is not a
            condensed set.
    """

    def __init__(
        self,
        condensed: str,
        ipc: int | None = None,
        recipe: RecipeOptions | None = None,
        seed: int | None = None,
        ledger: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.condensed = None if condensed == "random" else CondensedSet.load(condensed)
        if (self.condensed is None) != (ipc is not None):
            raise ValueError("give ipc with condensed: random, and only then")
        if ipc is not None and ipc < 1:
            raise ValueError(f"ipc must be at least 1, got {ipc}")
        self.ipc = ipc
        stored = {} if self.condensed is None else self.condensed.metadata.get("recipe", {})
        self._recipe = Recipe.merged(stored, recipe)
        self.seed = run_seed() if seed is None else seed
        self.ledger = ledger
        self.networks = nn.ModuleList()
        # The networks are trained whole, one in a step, outside Lightning's optimisation.
        self.automatic_optimization = False

    def setup(self, stage: str) -> None:
        """Check that the condensed set and the data belong together.

        Raises:
            MisconfigurationException: if they do not.
        """
        if self._data is None:
            raise MisconfigurationException("Evaluation takes its test images from a data module")
        if stage == "fit" and self.trainer.world_size > 1:
            raise MisconfigurationException(
                "Evaluation trains its networks in one process: use devices=1 for fit (test may "
                "use several)"
            )
        super().setup(stage)
        if self.condensed is None:
            return
        metadata = self.condensed.metadata
        whitening: Whitening | None = self.condensed.whitening
        data_whitening: Whitening | None = getattr(self._data, "whitening", None)
        zca = whitening is not None
        same_data = "the data module of the dataset it was condensed from, with the same image size"
        for name, ours, theirs, remedy in (
            ("image shape", self.condensed.image_shape, tuple(self._data.image_shape), same_data),
            ("class names", self.condensed.class_names, list(self._data.class_names), same_data),
            # Before mean and std, which follow from it.
            ("zca", zca, data_whitening is not None, f"--data.zca {str(zca).lower()}"),
            ("mean", list(metadata["mean"]), [float(m) for m in self._data.mean], same_data),
            ("std", list(metadata["std"]), [float(s) for s in self._data.std], same_data),
        ):
            if ours != theirs:
                raise MisconfigurationException(
                    f"the condensed set has {name} {ours}, the data module {theirs}; give {remedy}"
                )
        if whitening is None or data_whitening is None:
            return
        if not same_whitening(whitening, data_whitening):
            raise MisconfigurationException(
                "the condensed set was whitened as other training images ask for; give the data "
                "module of the dataset it was condensed from, with the same training images "
                "(the same validation_share and split_seed, if any)"
            )

    @property
    def recipe(self) -> Recipe:
        """The protocol's settings."""
        return self._recipe

    def training_set(self, number: int) -> tuple[Tensor, Tensor]:
        """The condensed set, or real images drawn for this network."""
        if self.condensed is None:
            assert self.ipc is not None
            images = random_images(self._data, self.ipc, self.seed, "evaluation/random", number)
            labels = torch.arange(self._data.num_classes).repeat_interleave(self.ipc)
        else:
            images, labels = self.condensed.images, self.condensed.labels
        return images.to(self.device), labels.to(self.device)

    def describe(self) -> dict[str, Any]:
        """What was evaluated, for the ledger."""
        if self.condensed is None:
            return {"ipc": self.ipc, "method": "random", "dam": 0, "seed": self.seed, "steps": 0}
        metadata = self.condensed.metadata
        columns = ("ipc", "method", "dam", "seed", "steps")
        return {column: metadata.get(column, "") for column in columns}

    def evaluated_networks(self) -> Sequence[nn.Module]:
        """The networks of the checkpoint, or networks trained now."""
        if len(self.networks) > 0:
            return [network.eval() for network in self.networks]
        return super().evaluated_networks()

    def configure_optimizers(self) -> None:
        """None: every network has its own."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Train one network, and stop after the last. The batch of real images is not used."""
        number = len(self.networks)
        images, labels = self.training_set(number)
        num_classes = self._data.num_classes
        network = train_network(
            images, labels, num_classes, self.recipe, seed=self.seed, number=number
        )
        self.networks.append(network)
        self.trainer.should_stop = len(self.networks) >= self.recipe.num_networks

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the networks are and what they were trained on."""
        checkpoint["evaluation"] = {
            "trained_on": self._trained_on(),
            "recipe": self.recipe.as_dict(),
            "image_shape": list(self._data.image_shape),
            "num_classes": self._data.num_classes,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make room for the networks of a checkpoint.

        Raises:
            MisconfigurationException: if it is not a checkpoint of an evaluation, or of an
                evaluation of other images.
        """
        saved = checkpoint.get("evaluation")
        if saved is None:
            raise MisconfigurationException(
                "this is no checkpoint of an Evaluation; evaluate a condensation's checkpoint with "
                "the config it was condensed with, or its condensed set with model.condensed"
            )
        if saved["trained_on"] != self._trained_on():
            raise MisconfigurationException(
                f"the networks of the checkpoint were trained on {saved['trained_on']}, but "
                f"condensed is {self._trained_on()}; give the same, or leave the checkpoint out"
            )
        # The networks are those of the checkpoint, whatever recipe is asked for now.
        self._recipe = Recipe(**saved["recipe"])
        channels, height, width = saved["image_shape"]
        trained = {k.split(".")[1] for k in checkpoint["state_dict"] if k.startswith("networks.")}
        self.networks = nn.ModuleList(
            build_backbone(
                self.recipe.backbone,
                (channels, height, width),
                saved["num_classes"],
                self.recipe.backbone_args,
                device=self.device,
            )
            for _ in trained
        )

    def _trained_on(self) -> str:
        """Tells training sets apart."""
        if self.condensed is None:
            return f"{self.ipc} random real images per class, seed {self.seed}"
        digest = blake2b(self.condensed.images.numpy().tobytes(), digest_size=8)
        digest.update(self.condensed.labels.numpy().tobytes())
        return f"condensed set {digest.hexdigest()}"
