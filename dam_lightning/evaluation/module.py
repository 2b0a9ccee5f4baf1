"""Evaluation of a condensed set, or of real images as a baseline, by itself."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from dam_lightning.backbones import build_backbone
from dam_lightning.backbones.build import check_known
from dam_lightning.condensed_set import CondensedSet
from dam_lightning.data.sampling import RealImages, check_class_sizes, random_images
from dam_lightning.evaluation.coresets import CORESETS, Selection, SelectionOptions, coreset
from dam_lightning.evaluation.loop import EvaluatingModule
from dam_lightning.evaluation.recipe import BackboneOptions, Recipe, RecipeOptions
from dam_lightning.evaluation.training import train_network
from dam_lightning.functional import Whitening, same_whitening
from dam_lightning.randomness import run_seed

__all__ = ["Evaluation"]


_BASELINES = ("random", *CORESETS, "whole")


class Evaluation(EvaluatingModule):
    """Trains fresh networks on a training set and tests them on the data module's real test images.

    ``test`` trains and tests; ``fit`` trains and keeps the networks in the checkpoint, which
    ``test`` then tests without training.

    Args:
        condensed: file of a `CondensedSet`, or what real images to train on: ``"random"`` ones,
            drawn anew for each network; a coreset, the same for all networks, chosen by
            ``"herding"``, as ``"k_center"`` or as medoids of ``"k_means"``; or the ``"whole"``
            training set.
        ipc: images per class of ``"random"`` and of a coreset; a file has its own.
        recipe: overrides of the recipe stored in the file (of the paper's protocol for real
            images), see `Recipe`. Its 1001 epochs are too many for ``"whole"``.
        seed: key of all draws; None: the run's seed.
        ledger: CSV file to which ``test`` appends a row for each backbone.
        selection: by which features a coreset is chosen, see `Selection`.
        backbones: evaluate on these, one after the other by the same recipe, in place of the
            recipe's backbone: names, or names with options of their own. Without options the
            recipe's backbone has those of the recipe. Not for ``fit``.

    Attributes:
        networks: the networks trained by ``fit``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if arguments contradict each other, or the file is not a condensed set.
    """

    def __init__(
        self,
        condensed: str,
        ipc: int | None = None,
        recipe: RecipeOptions | None = None,
        seed: int | None = None,
        ledger: str | None = None,
        selection: SelectionOptions | None = None,
        backbones: list[str | BackboneOptions] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.baseline = condensed if condensed in _BASELINES else None
        if (self.baseline in ("random", *CORESETS)) != (ipc is not None):
            raise ValueError(
                f"give ipc with condensed: random, {', '.join(CORESETS)}, and only then"
            )
        if ipc is not None and ipc < 1:
            raise ValueError(f"ipc must be at least 1, got {ipc}")
        if selection is not None and self.baseline not in CORESETS:
            raise ValueError(f"give selection with condensed: {', '.join(CORESETS)}, and only then")
        if self.baseline is None and not Path(condensed).is_file():
            raise FileNotFoundError(
                f"there is no condensed set at {condensed}; give a file, or one of "
                f"{', '.join(_BASELINES)}"
            )
        self.condensed = CondensedSet.load(condensed) if self.baseline is None else None
        self.ipc = ipc
        self.selection = Selection.of(selection)
        self._coreset: Tensor | None = None
        stored = {} if self.condensed is None else self.condensed.metadata.get("recipe", {})
        self._recipe = Recipe.merged(stored, recipe)
        if "backbone" not in (recipe or {}):
            check_known(self._recipe.backbone, "--model.recipe.backbone")
        self._cross = None if backbones is None else _by_name(self._recipe, backbones)
        self.seed = run_seed() if seed is None else seed
        self.ledger = ledger
        self.networks = nn.ModuleList()
        self._seen_by_networks: dict[str, Any] | None = None
        # The networks are trained whole, one in a step, outside Lightning's optimisation.
        self.automatic_optimization = False

    def setup(self, stage: str) -> None:
        """Check that the training set, the data and the backbones belong together.

        Raises:
            MisconfigurationException: if they do not.
            ValueError: if a class has too few real images, or a backbone cannot be made.
        """
        if self._data is None:
            raise MisconfigurationException("Evaluation takes its test images from a data module")
        # Chosen of the images of a data module, which may be another one now.
        self._coreset = None
        if stage == "fit" and self.trainer.world_size > 1:
            raise MisconfigurationException(
                "Evaluation trains its networks in one process: use devices=1 for fit (test may "
                "use several)"
            )
        if stage == "fit" and self._cross is not None:
            raise MisconfigurationException(
                "fit keeps networks of one backbone: leave out backbones, and name it with "
                "recipe.backbone"
            )
        super().setup(stage)
        for recipe in (self._cross or {}).values():
            # To be refused now, not when those before it have been trained.
            build_backbone(
                recipe.backbone,
                self._data.image_shape,
                self._data.num_classes,
                recipe.backbone_args,
            )
        if self.condensed is None:
            if self.ipc is not None:
                check_class_sizes(self._data, self.ipc)
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
        fingerprint = getattr(self._data, "fingerprint", None)
        if metadata.get("fingerprint") not in (None, "", fingerprint) and fingerprint is not None:
            rank_zero_info(
                "The condensed set was made of other training images than the data module has "
                "(other files, domains, split_seed or validation_share); test images may be among "
                "them."
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

    @property
    def recipes(self) -> Mapping[str, Recipe]:
        """The recipe, or one for each of the backbones."""
        return super().recipes if self._cross is None else self._cross

    def training_set(self, number: int) -> tuple[Tensor | RealImages, Tensor]:
        """The condensed set, or real images; random ones are drawn for this network."""
        if self.baseline == "whole":
            real = RealImages(self._data, self.device)
            return real, self._data.train.labels.to(self.device)
        if self.condensed is not None:
            images, labels = self.condensed.images, self.condensed.labels
        else:
            assert self.ipc is not None
            labels = torch.arange(self._data.num_classes).repeat_interleave(self.ipc)
            if self.baseline == "random":
                images = random_images(self._data, self.ipc, self.seed, "evaluation/random", number)
            else:
                images = RealImages(self._data)[self._chosen(self.ipc)]
        return images.to(self.device), labels.to(self.device)

    def _chosen(self, ipc: int) -> Tensor:
        """The coreset, chosen when first asked for."""
        if self._coreset is None:
            assert self.baseline is not None
            self._coreset = coreset(
                self._data, self.baseline, ipc, self.selection, self.recipe, self.seed, self.device
            )
        return self._coreset

    def describe(self) -> dict[str, Any]:
        """What was evaluated, for the ledger."""
        if self.condensed is None:
            return {
                "ipc": "" if self.ipc is None else self.ipc,
                "method": self.baseline,
                "dam": 0,
                "seed": self.seed,
                "steps": 0,
            }
        metadata = self.condensed.metadata
        columns = ("ipc", "method", "dam", "seed", "steps")
        return {column: metadata.get(column, "") for column in columns}

    def evaluated_networks(self, recipe: Recipe) -> Sequence[nn.Module]:
        """The networks of the checkpoint, or networks trained now."""
        if len(self.networks) > 0:
            ours = _described(self._data)
            for name, theirs in (self._seen_by_networks or {}).items():
                if ours[name] != theirs:
                    raise MisconfigurationException(
                        f"the networks were trained on images with {name} {theirs}, the data "
                        f"module has {ours[name]}; give the data module that they were trained on"
                    )
            return [network.eval() for network in self.networks]
        return super().evaluated_networks(recipe)

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
        self._seen_by_networks = _described(self._data)
        self.trainer.should_stop = len(self.networks) >= self.recipe.num_networks

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the networks are and what they were trained on."""
        checkpoint["evaluation"] = {
            "trained_on": self._trained_on(),
            "recipe": self.recipe.as_dict(),
            "data": self._seen_by_networks or _described(self._data),
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
        if self._cross is not None:
            raise MisconfigurationException(
                f"the checkpoint has networks of one backbone, {saved['recipe']['backbone']}: "
                "leave out backbones, or the checkpoint"
            )
        if saved["trained_on"] != self._trained_on():
            raise MisconfigurationException(
                f"the networks of the checkpoint were trained on {saved['trained_on']}, but "
                f"condensed is {self._trained_on()}; give the same, or leave the checkpoint out"
            )
        self._seen_by_networks = saved["data"]
        # The networks are those of the checkpoint, whatever recipe is asked for now.
        asked = self._recipe.as_dict()
        theirs = replace(Recipe(**saved["recipe"]), compile=self._recipe.compile)
        if theirs.backbone != self._recipe.backbone:
            check_known(theirs.backbone, "--model.recipe.backbone")
        self._recipe = theirs
        for name, value in self._recipe.as_dict().items():
            if asked[name] != value:
                rank_zero_info(
                    f"The networks of the checkpoint were made with {name} {value}; "
                    f"{asked[name]} is not used."
                )
        channels, height, width = saved["data"]["image_shape"]
        trained = {k.split(".")[1] for k in checkpoint["state_dict"] if k.startswith("networks.")}
        self.networks = nn.ModuleList(
            build_backbone(
                self.recipe.backbone,
                (channels, height, width),
                len(saved["data"]["class_names"]),
                self.recipe.backbone_args,
                device=self.device,
            )
            for _ in trained
        )

    def _trained_on(self) -> str:
        """Tells training sets apart."""
        if self.baseline == "whole":
            return "all training images"
        if self.baseline == "random":
            return f"{self.ipc} random real images per class, seed {self.seed}"
        if self.condensed is None:
            by = f"{self.selection.features} features"
            if self.selection.features == "trained":
                by += f" of {self.selection.epochs} epochs"
            return f"{self.ipc} images per class by {self.baseline} ({by}), seed {self.seed}"
        digest = blake2b(self.condensed.images.numpy().tobytes(), digest_size=8)
        digest.update(self.condensed.labels.numpy().tobytes())
        return f"condensed set {digest.hexdigest()}"


def _described(data: Any) -> dict[str, Any]:
    """What must be the same where networks are tested as where they were trained."""
    return {
        "image_shape": list(data.image_shape),
        "class_names": list(data.class_names),
        "zca": getattr(data, "whitening", None) is not None,
        "mean": [float(value) for value in data.mean],
        "std": [float(value) for value in data.std],
    }


def _by_name(recipe: Recipe, backbones: Sequence[str | BackboneOptions]) -> dict[str, Recipe]:
    """The recipe with each of the backbones, by the backbone's name, with options where needed."""
    entries: list[BackboneOptions] = [
        {"backbone": entry} if isinstance(entry, str) else entry for entry in backbones
    ]
    if not entries:
        raise ValueError("backbones must name at least one")
    recipes = []
    for entry in entries:
        if "backbone" not in entry or set(entry) - {"backbone", "backbone_args"}:
            raise ValueError(
                f"backbones: give names, or backbone with backbone_args, not {dict(entry)}"
            )
        recipes.append(Recipe.merged(asdict(recipe), entry))
    together = Counter(each.backbone for each in recipes)
    names = [each.backbone if together[each.backbone] == 1 else each.network for each in recipes]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"backbones has {twice[0]} twice")
    return dict(zip(names, recipes, strict=True))
