"""What all condensation methods share: the parameters, the two losses, and Lightning's hooks."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from dam_lightning.backbones import Backbone, build_backbone
from dam_lightning.condensed_set import CondensedSet, as_json
from dam_lightning.dam import DomainAwareModule
from dam_lightning.data.groups import GroupedBatch, Groups
from dam_lightning.data.sampling import check_class_sizes, random_images
from dam_lightning.evaluation.loop import EvaluatingModule
from dam_lightning.evaluation.recipe import Recipe, RecipeOptions
from dam_lightning.files import check_writable, is_rehearsal, run_folder
from dam_lightning.functional import (
    DSA,
    augment,
    strategy_operations,
)
from dam_lightning.methods.checkpoints import (
    CondensedSetBeside,
    changed_arguments,
    changed_data,
    check_data,
    check_shapes,
)
from dam_lightning.methods.draws import augmentation_draws, dealt_out
from dam_lightning.methods.gradients import carry_gradient
from dam_lightning.methods.provenance import data_provenance, unknown_data
from dam_lightning.methods.trainer_options import check_trainer_options
from dam_lightning.randomness import run_seed, seeded, torch_generator
from dam_lightning.version import __version__

__all__ = ["Condenser", "DAMOptions"]


class DAMOptions(TypedDict, total=False):
    """Arguments of `DomainAwareModule`; what is left out keeps its default."""

    num_domains: int
    temperature: float
    init_value: float
    init: Literal["constant", "normal"]
    mask_channels: int | None
    weight: float


def _check_options(dam: DAMOptions | None) -> None:
    """Refuse what `DomainAwareModule` would refuse once the shapes are known, before any work."""
    if dam is None:
        return
    try:
        DomainAwareModule(1, (dam.get("mask_channels") or 1, 1, 1), **dam)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"dam: {error}") from error


class Condenser(EvaluatingModule):
    """Learns synthetic images by matching real ones; the base of every method.

    A method implements `matching_loss` and `network_state`. The class loss is the matching loss on
    images grouped by class, the domain loss the same function on images grouped by pseudo-domain
    against the synthetic images seen through DAM's masks (paper eq. 6 to 8).

    Args:
        ipc: synthetic images per class.
        dam: arguments of `DomainAwareModule`, ``{}`` for the paper's; None for the base method
            alone.
        backbone: class of the networks, as `dam_lightning.backbones.build_backbone` takes it.
        backbone_args: its options.
        lr_images: step size for the images.
        lr_masks: step size for the masks; None: as for the images.
        momentum: of SGD, for both.
        augmentation: DSA strategy, one draw for each group, shared by its real and synthetic
            images; None switches it off.
        init: ``"noise"`` (standard normal, as in the paper's main tables) or ``"real"`` (random
            real images of the class).
        seed: key of all draws; None: the run's seed, or a resumed checkpoint's.
        max_images: images whose activations may be in memory together; larger steps are cut into
            pieces with the same gradient. None: 256 on a CPU, whose caches larger pieces overrun,
            and 1024 elsewhere.
        num_classes: None: the data module's.
        image_shape: (C, H, W); None: the data module's.
        recipe: how ``test`` evaluates, see `Recipe`; backbone, its options and the augmentation are
            those of the condensation unless given.
        ledger: CSV file to which ``test`` appends a row.

    Attributes:
        images: parameter, (M, C, H, W) with M = ipc * num_classes, class by class, normalised.
        labels: buffer, (M,) int64.
        dam: the `DomainAwareModule`, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    images: nn.Parameter
    labels: Tensor
    dam: DomainAwareModule | None

    def __init__(
        self,
        ipc: int = 1,
        dam: DAMOptions | None = None,
        backbone: str = "ConvNet",
        backbone_args: dict[str, Any] | None = None,
        lr_images: float = 1.0,
        lr_masks: float | None = None,
        momentum: float = 0.5,
        augmentation: str | None = DSA,
        init: Literal["noise", "real"] = "noise",
        seed: int | None = None,
        max_images: int | None = None,
        num_classes: int | None = None,
        image_shape: tuple[int, int, int] | None = None,
        recipe: RecipeOptions | None = None,
        ledger: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("ipc", ipc), ("max_images", max_images)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not lr_images > 0:
            raise ValueError(f"lr_images must be above 0, got {lr_images}")
        if lr_masks is not None and not lr_masks >= 0:
            raise ValueError(f"lr_masks must be 0 or above, got {lr_masks}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if init not in ("noise", "real"):
            raise ValueError(f"init must be noise or real, got {init!r}")
        if (num_classes is None) != (image_shape is None):
            raise ValueError("give both num_classes and image_shape, or neither")
        self.save_hyperparameters()
        self.ipc = ipc
        self.dam = None
        self.backbone = backbone
        self.backbone_args = backbone_args or {}
        self.lr_images = lr_images
        self.lr_masks = lr_images if lr_masks is None else lr_masks
        self.momentum = momentum
        self.augmentation = augmentation
        self.init = init
        self.seed = run_seed() if seed is None else seed
        self._max_images = max_images
        self.ledger = ledger
        inherited: dict[str, Any] = {
            "backbone": backbone,
            "backbone_args": self.backbone_args,
            "augmentation": augmentation,
        }
        self.recipe = Recipe.merged(inherited, recipe)
        self._dam_options = dam
        self._operations = () if augmentation is None else strategy_operations(augmentation)
        self._seed_is_given = seed is not None
        self._images_are_initial = True
        self._rates_were_changed = False
        self._provenance: dict[str, Any] = {}
        _check_options(dam)
        if num_classes is not None and image_shape is not None:
            self._build(num_classes, image_shape)

    # What a method implements.

    @abstractmethod
    def network_state(self, step: int) -> Any:
        """The network, or networks, of a step: whatever `matching_loss` needs of it.

        Must be a function of the seed and the step, hold no registered submodule, and be equal on
        all processes.
        """

    @abstractmethod
    def matching_loss(self, state: Any, real: Tensor, counts: Tensor, synthetic: Tensor) -> Tensor:
        """How far the synthetic images of some groups are from the real ones.

        Args:
            state: from `network_state`.
            real: (G, B, C, H, W), augmented.
            counts: (G,) int64 on the device of ``real``: leading rows of each group that count.
            synthetic: (G, I, C, H, W), augmented alike.

        Returns:
            A scalar, a sum over the groups, differentiable in ``synthetic``.
        """

    # The step.

    def training_step(self, batch: GroupedBatch, batch_idx: int) -> Tensor:
        """One image update: class loss, plus weighted domain loss (paper eq. 6 to 8)."""
        state = self.network_state(batch.step)
        by_class = self.images.view(-1, self.ipc, *self.images.shape[1:])
        loss = class_loss = self._match("class", batch, batch.classes, by_class, state)
        if self.dam is not None and self.dam.weight > 0:
            if batch.domains is None:
                raise MisconfigurationException(
                    "DAM needs real images by pseudo-domain: the data module's setup_domains was "
                    "not called, or its batches leave domains out"
                )
            domain_views = self.dam(self.images)
            domain_loss = self._match("domain", batch, batch.domains, domain_views, state)
            loss = class_loss + self.dam.weight * domain_loss
            self.log("loss_class", class_loss.detach(), sync_dist=True)
            self.log("loss_domain", domain_loss.detach(), sync_dist=True)
        self.log("loss", loss.detach(), prog_bar=True, sync_dist=True)
        return loss

    def _match(
        self, branch: str, batch: GroupedBatch, groups: Groups, synthetic: Tensor, state: Any
    ) -> Tensor:
        """The matching loss of one grouping; its gradient is computed here, piece by piece.

        Only the synthetic images of a piece have a graph, and no two pieces have one together.
        """
        value = torch.zeros((), device=synthetic.device, dtype=synthetic.dtype)
        gradient = torch.zeros_like(synthetic)
        rank, world_size = self._rank_and_world_size
        count, offset = len(groups.indices), 0 if branch == "class" else len(batch.classes.indices)
        rows = dealt_out(count, rank, world_size, first=offset)
        together = max(1, self.max_images // max(groups.indices.shape[1], synthetic.shape[1]))
        for piece in (rows[i : i + together] for i in range(0, len(rows), together)):
            real = groups.images(piece).to(synthetic.dtype)
            # A slice, because indices would be copied to the device, and the host wait for it.
            at = slice(piece.start, piece.stop, piece.step)
            counts = groups.counts[at].to(real.device, non_blocking=True)
            leaf = synthetic[at].detach().requires_grad_()
            views = leaf
            if self.augmentation is not None:
                height, width = leaf.shape[-2:]
                drawn = augmentation_draws(
                    self._operations,
                    piece,
                    (height, width),
                    seed=self.seed,
                    branch=branch,
                    step=batch.step,
                ).to(leaf, non_blocking=True)
                real, views = augment(real, drawn), augment(leaf, drawn)
            # Seeded for backbones with dropout, which draws from the global generators; what it
            # draws does depend on the pieces, and so on max_images and the number of processes.
            with seeded(real.device, self.seed, f"dropout/{branch}", batch.step, piece[0]):
                loss = self.matching_loss(state, real, counts, views)
                (gradient[at],) = torch.autograd.grad(loss, leaf)
            value += loss.detach()
        # Strategies average over processes; the loss is a sum.
        return carry_gradient(value * world_size, gradient * world_size, synthetic)

    @property
    def _rank_and_world_size(self) -> tuple[int, int]:
        if self._trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    @property
    def max_images(self) -> int:
        """Images whose activations may be in memory together."""
        return self._max_images or (256 if self.device.type == "cpu" else 1024)

    def fresh_network(self, step: int, stream: str = "network") -> Backbone:
        """A newly initialised backbone on this module's device, fixed by seed, stream and step."""
        channels, height, width = self.images.shape[1:]
        return build_backbone(
            self.backbone,
            (channels, height, width),
            len(self.labels) // self.ipc,
            self.backbone_args,
            device=self.images.device,
            seed=self.seed,
            stream=stream,
            step=step,
        )

    # Lightning's hooks.

    def setup(self, stage: str) -> None:
        """Take shapes and, for ``fit``, pseudo-domains and initial images from the data module.

        Raises:
            MisconfigurationException: if the data module is missing or contradicts the arguments,
                or the Trainer is set to something that would change the method.
            ValueError: if a class has fewer than ``ipc`` training images.
            OSError: if the run's folder cannot be written into.
        """
        data = self._data
        if data is None:
            raise MisconfigurationException("a Condenser takes its real images from a data module")
        shapes = {"num_classes": data.num_classes, "image_shape": tuple(data.image_shape)}
        if stage == "fit":
            self._check_fit(data)
        super().setup(stage)
        if not self._is_built:
            self._build(**shapes)
        for name, value in shapes.items():
            ours = self.hparams[name]
            if (tuple(ours) if isinstance(ours, list) else ours) != value:
                raise MisconfigurationException(
                    f"{name} is {ours}, but the data has {value}; leave the argument out, or give "
                    "the data it was meant for"
                )
        self._provenance = data_provenance(data)
        strategy = self.trainer.strategy
        strategy.checkpoint_io = CondensedSetBeside.around(
            strategy.checkpoint_io, self.condensed_set
        )
        if stage != "fit":
            return
        if self.dam is not None and self.dam.weight > 0:
            data.setup_domains(self.dam.num_domains)
        if self.init == "real" and self._images_are_initial:
            with torch.no_grad():
                self.images.copy_(random_images(data, self.ipc, self.seed, "init"))
        self._images_are_initial = False

    def _check_fit(self, data: Any) -> None:
        """Refuse what must not be condensed, before anything is made."""
        trainer = self.trainer
        check_trainer_options(
            trainer.precision, trainer.strategy, trainer.accumulate_grad_batches, trainer.max_steps
        )
        check_writable(run_folder(trainer), "default_root_dir of the Trainer")
        check_class_sizes(data, self.ipc)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One SGD for images and masks, so that a step is a step in every count of Lightning's."""
        groups: list[dict[str, Any]] = [{"params": [self.images], "lr": self.lr_images}]
        if self.dam is not None:
            groups.append({"params": list(self.dam.parameters()), "lr": self.lr_masks})
        return torch.optim.SGD(groups, lr=self.lr_images, momentum=self.momentum)

    def on_train_start(self) -> None:
        """Let step sizes that were changed on resuming win over the optimiser's saved ones."""
        if self._rates_were_changed:
            optimizer = self.trainer.optimizers[0]
            rates = (self.lr_images, self.lr_masks)
            # One group without DAM, two with it.
            for group, lr in zip(optimizer.param_groups, rates, strict=False):
                group.update(lr=lr, momentum=self.momentum)

    def on_validation_start(self) -> None:
        """Train the networks that are to be tested, if there is anything to train them on."""
        self._require_condensed()
        super().on_validation_start()

    def on_test_start(self) -> None:
        """Train the networks that are to be tested, if there is anything to train them on."""
        self._require_condensed()
        super().on_test_start()

    def _require_condensed(self) -> None:
        if self._images_are_initial:
            raise MisconfigurationException(
                "there is nothing to evaluate: no image was condensed yet. Fit first, or give the "
                "checkpoint of a condensation (--ckpt_path, or ckpt_path= in Python)"
            )

    def on_train_end(self) -> None:
        """Write the condensed set into the run's folder."""
        path = run_folder(self.trainer) / "condensed.safetensors"
        if self.trainer.is_global_zero and not is_rehearsal(self.trainer):
            self.condensed_set().save(path)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a condensed set made from the checkpoint must tell."""
        checkpoint["condenser"] = {
            "class": type(self).__qualname__,
            "seed": self.seed,
            "steps": self.global_step,
            "provenance": self._provenance,
        }
        # Whatever users gave, such as a path, must load again where only plain values do.
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            if key in checkpoint:
                checkpoint[key] = as_json(dict(checkpoint[key]))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits, and go on with its seed.

        Raises:
            MisconfigurationException: if it is of another class or shape.
        """
        saved = checkpoint.get("condenser", {"class": "another module"})
        if saved["class"] != type(self).__qualname__:
            raise MisconfigurationException(
                f"this is a checkpoint of {saved['class']}, not of {type(self).__qualname__}; give "
                "the class it was made with"
            )
        theirs = checkpoint["hyper_parameters"]
        self._build_as(checkpoint["state_dict"])
        check_shapes(self.hparams, self.state_dict(), theirs, checkpoint["state_dict"])
        check_data(self._provenance, saved["provenance"])
        changed = changed_arguments(self.hparams, theirs)
        changed |= changed_data(self._provenance, saved["provenance"])
        if self._seed_is_given and self.seed != saved["seed"]:
            changed["seed"] = (self.seed, saved["seed"])
        elif self.seed != saved["seed"]:
            rank_zero_info(f"Going on with the checkpoint's seed {saved['seed']}, not {self.seed}")
            self.seed = saved["seed"]
        if changed:
            listed = ", ".join(
                f"{name}={'unset' if new is None else new} (was {'unset' if old is None else old})"
                for name, (new, old) in changed.items()
            )
            rank_zero_info(f"Arguments that differ from the checkpoint's: {listed}")
        self._rates_were_changed = bool({"lr_images", "lr_masks", "momentum"} & set(changed))
        if self._trainer is None or not self.trainer.training:
            # The images were made from those data, whatever they are tested on.
            self._provenance = saved["provenance"]
        self._saved_steps = saved["steps"]

    # What comes out.

    def condensed_set(self) -> CondensedSet:
        """The images as they are now, with their provenance and without masks.

        Raises:
            RuntimeError: if the shapes are not known yet.
        """
        if not self._is_built:
            raise RuntimeError(
                "there are no images yet: they are made when fit begins, or at once if num_classes "
                "and image_shape are given"
            )
        if self._trainer is not None and not self._provenance:
            raise RuntimeError(
                "what the images were made from is known to the processes that made them; load "
                "condensed.safetensors from the run's folder"
            )
        trainer = {}
        if self._trainer is not None:
            trainer = {"max_steps": self.trainer.max_steps, "precision": self.trainer.precision}
        hparams = as_json({k: v for k, v in self.hparams.items() if not k.startswith("_")})
        unknown = unknown_data(len(self.labels) // self.ipc, self.images.shape[1])
        provenance = {**unknown, **self._provenance}
        metadata = {
            **self.describe(),
            "version": __version__,
            "versions": {"torch": torch.__version__, "lightning": lightning.__version__},
            "config": {"model": hparams, "data": provenance.pop("data"), "trainer": trainer},
            "recipe": self.recipe.as_dict(),
            **provenance,
        }
        return CondensedSet(self.images.detach().float().cpu(), self.labels.cpu(), metadata)

    # For evaluation.

    def training_set(self, number: int) -> tuple[Tensor, Tensor]:
        """The synthetic images and their labels, the same for every network."""
        return self.images.detach().float(), self.labels

    def describe(self) -> dict[str, Any]:
        """This condensation, for the ledger and the condensed set."""
        return {
            "method": type(self).__name__,
            "ipc": self.ipc,
            "dam": 0 if self.dam is None else self.dam.num_domains,
            "seed": self.seed,
            "steps": self.global_step or self._saved_steps,
        }

    # Building.

    _saved_steps = 0

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load images and masks, making them first where their shapes are not known yet."""
        self._build_as(state_dict)
        self._images_are_initial = False
        return super().load_state_dict(state_dict, strict, assign)

    def _build_as(self, state_dict: Mapping[str, Any]) -> None:
        if not self._is_built and {"images", "labels"} <= set(state_dict):
            channels, height, width = state_dict["images"].shape[1:]
            self._build(len(state_dict["labels"]) // self.ipc, (channels, height, width))
            self.to(state_dict["images"].dtype)

    @property
    def _is_built(self) -> bool:
        return "labels" in self._buffers

    def _build(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        """Make the parameters, from noise."""
        count = self.ipc * num_classes
        noise = torch_generator("cpu", self.seed, "init")
        self.images = nn.Parameter(torch.randn(count, *image_shape, generator=noise))
        self.register_buffer("labels", torch.arange(num_classes).repeat_interleave(self.ipc))
        if self._dam_options is not None:
            with seeded("cpu", self.seed, "masks"):
                self.dam = DomainAwareModule(count, image_shape, **self._dam_options)
            if self.dam.weight == 0:
                # Masks that take no part need no gradient; distributed strategies insist on one.
                self.dam.requires_grad_(False)
        self.hparams["num_classes"] = num_classes
        self.hparams["image_shape"] = list(image_shape)
