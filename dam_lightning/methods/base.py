"""What all condensation methods share: the parameters, the two losses, and Lightning's hooks."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Literal, TypedDict

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from dam_lightning.backbones import Backbone, build_backbone
from dam_lightning.backbones.options import BackboneArgs
from dam_lightning.compilation import Compiled, worth_compiling
from dam_lightning.condensed_set import CondensedSet, as_json
from dam_lightning.dam import DomainAwareModule
from dam_lightning.data.groups import GroupedBatch
from dam_lightning.data.normalisation import Normalisation
from dam_lightning.data.sampling import check_class_sizes, random_images
from dam_lightning.evaluation.loop import EvaluatingModule
from dam_lightning.evaluation.recipe import Recipe, RecipeOptions
from dam_lightning.files import check_writable, is_rehearsal, run_folder
from dam_lightning.functional import (
    DSA,
    AugmentationParameters,
    Whitening,
    augment,
    strategy_operations,
)
from dam_lightning.functional.host import to_device
from dam_lightning.methods.checkpoints import (
    CondensedSetBeside,
    changed_arguments,
    changed_clipping,
    changed_data,
    check_data,
    check_described,
    check_shapes,
    check_whitening,
    of_the_images,
)
from dam_lightning.methods.draws import augmentation_draws, dealt_out
from dam_lightning.methods.gradients import carry_gradient
from dam_lightning.methods.provenance import data_provenance, unknown_data
from dam_lightning.methods.stability import DivergenceError, StepGuard, guarded_sgd
from dam_lightning.methods.trainer_options import check_trainer_options
from dam_lightning.pieces import images_at_once
from dam_lightning.precision import Precision, forward_passes
from dam_lightning.randomness import run_seed, seeded, torch_generator
from dam_lightning.version import __version__

__all__ = ["Branch", "Condenser", "DAMOptions"]

Branch = Literal["class", "domain"]
"""A grouping of the real images."""


class DAMOptions(TypedDict, total=False):
    """Arguments of `DomainAwareModule`; what is left out keeps its default."""

    num_domains: int
    temperature: float
    init_value: float
    init: Literal["constant", "normal", "one_hot"]
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


def _augment_pixels(
    normalisation: Normalisation, pixels: Tensor, drawn: AugmentationParameters
) -> Tensor:
    """Normalise and augment in one pass: (G, B, C, H, W) uint8 -> floating."""
    return augment(normalisation(pixels).to(drawn.color.dtype), drawn)


class Condenser(EvaluatingModule):
    """Learns synthetic images by matching real ones; the base of every method.

    A method implements `matching_loss` and `network_state`. The class loss is the matching loss on
    images grouped by class, the domain loss the same function on images grouped by pseudo-domain
    against the synthetic images seen through DAM's masks (paper eq. 6 to 8). A method that does not
    compare with the real images of the step implements `grouping_loss` instead of `matching_loss`.

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
        augment_views: augment in the domain loss too, DAM's views and the real images that they are
            matched with. The paper does not say; its loss is "the same".
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
        max_loss: a loss above this counts as exploding; None: no loss does.
        max_value: images with values beyond this, either way of zero in normalised units, count as
            exploding. Real images lie within 3.
        max_skipped: an update that a loss or gradient that is not finite, or something exploding,
            would spoil is left out; after so many in a row the run stops with a `DivergenceError`.
        compile: compile the work of a step, which takes up to a minute at the first one. None:
            where ``max_steps`` is at least 1000.
        precision: of the networks' forward passes; images, losses and gradients are float32
            either way. None: as the Trainer's ``precision`` says, and with its ``32-true`` what
            the method chooses (`DM`: bfloat16 where the device is fast at it; others: float32).

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
        backbone_args: BackboneArgs | None = None,
        lr_images: float = 1.0,
        lr_masks: float | None = None,
        momentum: float = 0.5,
        augmentation: str | None = DSA,
        augment_views: bool = True,
        init: Literal["noise", "real"] = "noise",
        seed: int | None = None,
        max_images: int | None = None,
        num_classes: int | None = None,
        image_shape: tuple[int, int, int] | None = None,
        recipe: RecipeOptions | None = None,
        ledger: str | None = None,
        max_loss: float | None = None,
        max_value: float = 1000.0,
        max_skipped: int = 20,
        compile: bool | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__()
        at_least_one = {"ipc": ipc, "max_images": max_images, "max_skipped": max_skipped}
        for name, value in at_least_one.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        above_zero = {"lr_images": lr_images, "max_loss": max_loss, "max_value": max_value}
        for name, number in above_zero.items():
            if number is not None and not number > 0:
                raise ValueError(f"{name} must be above 0, got {number}")
        if lr_masks is not None and not lr_masks >= 0:
            raise ValueError(f"lr_masks must be 0 or above, got {lr_masks}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if init not in ("noise", "real"):
            raise ValueError(f"init must be noise or real, got {init!r}")
        if precision not in (None, "float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, got {precision!r}")
        if (num_classes is None) != (image_shape is None):
            raise ValueError("give both num_classes and image_shape, or neither")
        self.save_hyperparameters()
        self.ipc = ipc
        self.dam = None
        self.backbone = backbone
        self.backbone_args = dict(backbone_args or {})
        self.lr_images = lr_images
        self.lr_masks = lr_images if lr_masks is None else lr_masks
        self.momentum = momentum
        self.augmentation = augmentation
        self.augment_views = augment_views
        self.init = init
        self.seed = run_seed() if seed is None else seed
        self._max_images = max_images
        self._compile = compile
        self._precision = precision
        self.ledger = ledger
        self.max_value = max_value
        self.max_skipped = max_skipped
        self._guard = StepGuard(max_loss)
        self._loss: Tensor | None = None
        inherited: dict[str, Any] = {
            "backbone": backbone,
            "backbone_args": self.backbone_args,
            "augmentation": augmentation,
        }
        self._recipe = Recipe.merged(inherited, recipe)
        self._dam_options = dam
        self._operations = () if augmentation is None else strategy_operations(augmentation)
        self._seed_is_given = seed is not None
        self._images_are_initial = True
        self._provenance: dict[str, Any] = {}
        # At which steps the run went on with other arguments, and what they were before.
        self._resumed: list[dict[str, Any]] = []
        self._whitening: Whitening | None = None
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

    def domain_state(self, step: int, state: Any) -> Any:
        """What `network_state` is for the domain loss; the same, where no method says otherwise.

        Args:
            step: of the optimisation.
            state: what `network_state` gave for this step.
        """
        return state

    def matching_loss(
        self, state: Any, real: Tensor, counts: Tensor, synthetic: Tensor, labels: Tensor
    ) -> Tensor:
        """How far the synthetic images of some groups are from the real ones.

        Args:
            state: from `network_state`, or `domain_state`.
            real: (G, B, C, H, W), augmented.
            counts: (G,) int64 on the device of ``real``: leading rows of each group that count.
            synthetic: (G, I, C, H, W), augmented alike.
            labels: (G,) int64 on the device of ``real``: number of each group's class, or of its
                pseudo-domain.

        Returns:
            A scalar, a sum over the groups, differentiable in ``synthetic``.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement matching_loss")

    # The step.

    def training_step(self, batch: GroupedBatch, batch_idx: int) -> Tensor:
        """One image update: class loss, plus weighted domain loss (paper eq. 6 to 8)."""
        state = self.network_state(batch.step)
        by_class = self.images.view(-1, self.ipc, *self.images.shape[1:])
        loss = class_loss = self.grouping_loss("class", batch, by_class, state)
        if self.dam is not None and self.dam.weight > 0:
            if batch.domains is None:
                raise MisconfigurationException(
                    "DAM needs real images by pseudo-domain: the data module's setup_domains was "
                    "not called, or its batches leave domains out"
                )
            state = self.domain_state(batch.step, state)
            domain_loss = self.grouping_loss("domain", batch, self.dam(self.images), state)
            loss = class_loss + self.dam.weight * domain_loss
            self.log("loss_class", class_loss.detach(), sync_dist=True)
            self.log("loss_domain", domain_loss.detach(), sync_dist=True)
        self.log("loss", loss.detach(), prog_bar=True, sync_dist=True)
        return loss

    def grouping_loss(
        self, branch: Branch, batch: GroupedBatch, synthetic: Tensor, state: Any
    ) -> Tensor:
        """The matching loss of one grouping; its gradient is computed here, piece by piece.

        Only the synthetic images of a piece have a graph, and no two pieces have one together.

        Args:
            branch: which grouping.
            batch: the real images of the step.
            synthetic: (G, I, C, H, W), of each class its images, or of each pseudo-domain the views
                of all.
            state: from `network_state`, or `domain_state`.

        Returns:
            A scalar, a sum over the groups, differentiable in ``synthetic``. Under several
            processes it is this one's share times their number, because strategies average.
        """
        groups = batch.classes if branch == "class" else batch.domains
        assert groups is not None
        value = torch.zeros((), device=synthetic.device, dtype=synthetic.dtype)
        gradient = torch.zeros_like(synthetic)
        rank, world_size = self._rank_and_world_size
        count, offset = len(groups.indices), 0 if branch == "class" else len(batch.classes.indices)
        rows = dealt_out(count, rank, world_size, first=offset)
        operations = self.operations(branch)
        together = max(1, self.max_images // max(groups.indices.shape[1], synthetic.shape[1]))
        for piece in (rows[i : i + together] for i in range(0, len(rows), together)):
            # A slice, because indices would be copied to the device, and the host wait for it.
            at = slice(piece.start, piece.stop, piece.step)
            leaf = synthetic[at].detach().requires_grad_()
            counts = to_device(groups.counts[at], leaf.device)
            labels = torch.arange(count, device=leaf.device)[at]
            if not operations:
                real, views = groups.images(piece).to(leaf.dtype), leaf
            else:
                height, width = leaf.shape[-2:]
                drawn = augmentation_draws(
                    operations,
                    piece,
                    (height, width),
                    seed=self.seed,
                    branch=branch,
                    step=batch.step,
                ).on(leaf)
                real = self._augment_pixels(groups.normalisation, groups.pixels(piece), drawn)
                views = self._augment(leaf, drawn)
            # Seeded for backbones with dropout, which draws from the global generators; what it
            # draws does depend on the pieces, and so on max_images and the number of processes.
            with (
                self.forward_precision(),
                seeded(real.device, self.seed, f"dropout/{branch}", batch.step, piece[0]),
            ):
                loss = self.matching_loss(state, real, counts, views, labels)
                (gradient[at],) = torch.autograd.grad(loss, leaf)
            value += loss.detach()
        # Strategies average over processes; the loss is a sum.
        return carry_gradient(value * world_size, [gradient * world_size], [synthetic])

    def operations(self, branch: Branch) -> tuple[int, ...]:
        """The augmentation of a grouping, as `strategy_operations` gives it; empty: none."""
        return () if branch == "domain" and not self.augment_views else self._operations

    @property
    def _rank_and_world_size(self) -> tuple[int, int]:
        if self._trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    @property
    def units(self) -> int:
        """How many pieces of work a step deals out over processes: groups of real images."""
        return self._num_classes + self._num_matched_domains

    @property
    def _num_matched_domains(self) -> int:
        """Pseudo-domains that have a share in the loss."""
        return 0 if self.dam is None or self.dam.weight == 0 else self.dam.num_domains

    _raise_units = ""
    """How there could be more of them, where they can be chosen."""

    @property
    def _num_classes(self) -> int:
        return len(self.labels) // self.ipc

    @property
    def max_images(self) -> int:
        """Images whose activations may be in memory together."""
        return self._max_images or (256 if self.device.type == "cpu" else self._accelerator_budget)

    @property
    def images_at_once(self) -> int:
        """Images in one pass through a network: the fastest within ``max_images``."""
        height, width = self.images.shape[-2:]
        return images_at_once(self.device, height, width, self.max_images)

    @property
    def compiles(self) -> bool:
        """Whether the work of a step is compiled."""
        if self._compile is not None:
            return self._compile
        return self._trainer is not None and worth_compiling(self._steps_to_come)

    @property
    def _steps_to_come(self) -> int:
        """Of the whole fit; -1: without end."""
        trainer = self.trainer
        epochs, each = trainer.max_epochs, trainer.num_training_batches
        if trainer.max_steps >= 0 or epochs in (None, -1) or not math.isfinite(each):
            return trainer.max_steps
        return int(epochs * each)

    def forward_precision(self) -> AbstractContextManager[None]:
        """In what forward passes of networks belong."""
        return forward_passes(self.device, self._forward_precision)

    @property
    def _forward_precision(self) -> Precision:
        if self._precision is not None:
            return self._precision
        if self.images.dtype != torch.float32:
            # Trainer's 64-true: nothing is cast.
            return "float32"
        if torch.is_autocast_enabled(self.device.type):
            # Trainer's bf16-mixed; 16-mixed is refused.
            return "bfloat16"
        return self._default_precision

    @property
    def _default_precision(self) -> Precision:
        """Of the forward passes, where nobody said anything."""
        return "float32"

    @cached_property
    def _augment(self) -> Compiled[Tensor]:
        return Compiled(augment, "the augmentation", enabled=self._compiles_augmentation)

    @cached_property
    def _augment_pixels(self) -> Compiled[Tensor]:
        return Compiled(
            _augment_pixels, "the augmentation of pixels", enabled=self._compiles_augmentation
        )

    @property
    def _compiles_augmentation(self) -> bool:
        """Compiled it is no faster on a CPU; elsewhere it is one launch instead of fifty."""
        return self.compiles and self.device.type != "cpu"

    def fresh_network(
        self, step: int, stream: str = "network", num_outputs: int | None = None
    ) -> Backbone:
        """A newly initialised backbone on this module's device, fixed by seed, stream and step.

        Args:
            step: of the optimisation, or another counter.
            stream: what it is for.
            num_outputs: None: as many as there are classes.
        """
        channels, height, width = self.images.shape[1:]
        return build_backbone(
            self.backbone,
            (channels, height, width),
            num_outputs or self._num_classes,
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
        # For this Trainer's device and number of steps.
        self.forget_compiled()
        self._provenance = data_provenance(data)
        self._whitening = getattr(data, "whitening", None)
        strategy = self.trainer.strategy
        strategy.checkpoint_io = CondensedSetBeside.around(
            strategy.checkpoint_io, self.condensed_set
        )
        if stage != "fit":
            return
        self._has_begun = False
        _, world_size = self._rank_and_world_size
        if world_size > self.units:
            rank_zero_warn(
                f"A step has work for {self.units} of {world_size} processes: {self._raise_units}"
                f"use fewer (--trainer.devices, --trainer.num_nodes)"
            )
        if self.dam is not None and self.dam.weight > 0:
            data.setup_domains(self.dam.num_domains)
        if self.init == "real" and self._images_are_initial:
            with torch.no_grad():
                self.images.copy_(random_images(data, self.ipc, self.seed, "init"))
        self._images_are_initial = False

    def teardown(self, stage: str) -> None:
        """Drop what is compiled, and the memory that it holds on an accelerator."""
        super().teardown(stage)
        self.forget_compiled()

    def forget_compiled(self) -> None:
        """Drop all that is compiled, to be compiled anew when it is needed.

        Called by `setup`, before anything was made, and by `teardown`. A method that keeps compiled
        functions, or networks for them, drops these too.
        """
        for name in ("_augment", "_augment_pixels"):
            self.__dict__.pop(name, None)

    def _check_fit(self, data: Any) -> None:
        """Refuse what must not be condensed, before anything is made."""
        trainer = self.trainer
        check_trainer_options(
            trainer.precision,
            trainer.strategy,
            trainer.accumulate_grad_batches,
            trainer.max_steps,
            trainer.max_epochs,
            trainer.limit_train_batches,
        )
        named = {"float32": "32-true", "bfloat16": "bf16-mixed"}
        if self._precision and trainer.precision not in ("32-true", named[self._precision]):
            raise MisconfigurationException(
                f"precision is {self._precision}, but the Trainer's is {trainer.precision}: leave "
                "one of them out"
            )
        check_writable(run_folder(trainer), "default_root_dir of the Trainer")
        check_class_sizes(data, self.ipc)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is learned: groups as `torch.optim.SGD` takes them, and the limits they must keep.

        A method with further parameters adds groups; see `StepGuard` for ``limit`` and
        ``positive``.
        """
        groups: list[dict[str, Any]] = [
            {"params": [self.images], "lr": self.lr_images, "limit": self.max_value}
        ]
        if self.dam is not None:
            groups.append({"params": list(self.dam.parameters()), "lr": self.lr_masks})
        return groups

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One SGD for images and masks, so that a step is a step in every count of Lightning's."""
        return guarded_sgd(self.parameter_groups(), self.momentum)

    def on_train_start(self) -> None:
        """Let step sizes that were changed on resuming win over the optimiser's saved ones.

        Raises:
            MisconfigurationException: if no step could be made, because images begin beyond
                ``max_value``, or the optimiser's state is of something else.
        """
        largest = float(self.images.detach().abs().max())
        if not largest <= self.max_value:
            raise MisconfigurationException(
                f"the images begin with values up to {largest:.4g}, beyond max_value "
                f"{self.max_value}: raise it"
            )
        # By now a resumed run has taken up the seed of the one before.
        seed = getattr(self._data, "seed", None)
        self._provenance["data"] = {**(self._provenance["data"] or {}), "seed": seed}
        optimizer = self.trainer.optimizers[0]
        groups = optimizer.param_groups
        for parameter, state in optimizer.state.items():
            momentum = state.get("momentum_buffer")
            if momentum is not None and momentum.shape != parameter.shape:
                raise MisconfigurationException(
                    f"the checkpoint is damaged: it has a momentum {tuple(momentum.shape)} of "
                    f"something {tuple(parameter.shape)}. Give another checkpoint"
                )
        for group, configured in zip(groups, self.parameter_groups(), strict=True):
            given = {name: value for name, value in configured.items() if name != "params"}
            group.update(given, momentum=self.momentum)
        self._guard.reset()
        self._has_begun = True
        every, last = self.trainer.val_check_batch, self.trainer.max_steps
        # Of a data module of somebody's own we do not know whether it has images to validate on.
        has_images = getattr(self._data, "val", True) is not None
        validates = self.trainer.enable_validation and has_images
        if validates and every is not None and 0 < last < every:
            rank_zero_warn(
                f"no validation will be made: there is one every {every} steps, and the fit ends "
                f"after {last}; lower steps_per_epoch of the data module"
            )

    def on_fit_end(self) -> None:
        """Say so where nothing was left to do, as of a checkpoint from the end of a run.

        That run may have been killed before it wrote its condensed set.
        """
        if not self._has_begun:
            self._save_condensed(again=False)
            rank_zero_info(
                f"Nothing was condensed: the checkpoint is from step {self.global_step} already; "
                "raise --trainer.max_steps to go on"
            )

    def on_before_backward(self, loss: Tensor) -> None:
        """Keep the loss for `configure_gradient_clipping`."""
        self._loss = loss.detach()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, then see whether the update may be made, without waiting for the device.

        Lightning's last hook before the update, whether gradients are to be clipped or not.
        """
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        loss, self._loss = self._loss, None
        if loss is None:
            # The step has none: Lightning's way for a subclass to pass over it.
            return
        if self._rank_and_world_size[1] > 1:
            # All processes must decide alike; each has its share, times their number.
            reduced = self.trainer.strategy.reduce(loss, reduce_op="mean")
            assert isinstance(reduced, Tensor)
            loss = reduced
        self._guard.inspect(optimizer, loss)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop a run that leads nowhere; looked at as often as metrics are logged.

        Raises:
            DivergenceError: too many steps in a row were left out.
        """
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.global_step % max(1, every) == 0:
            self._check_guard()

    def _clipping(self) -> dict[str, Any]:
        """How the Trainer clips gradients, by its arguments; nothing where it does not."""
        value = self.trainer.gradient_clip_val
        algorithm = self.trainer.gradient_clip_algorithm
        # Lightning's own value where nobody gave one.
        named = str(getattr(algorithm, "value", algorithm or "norm"))
        return {"gradient_clip_val": value, "gradient_clip_algorithm": named} if value else {}

    def _check_guard(self) -> None:
        path = run_folder(self.trainer) / "condensed.safetensors"
        try:
            remedies = [f"a smaller {name} (now {value})" for name, value in self.knobs().items()]
            remedies += ["init: real"] if self.init == "noise" else []
            self._guard.check(self.max_skipped, remedies, str(path))
        except DivergenceError:
            self._save_condensed()
            # The process that ends first takes the others with it.
            self.trainer.strategy.barrier("diverged")
            raise

    def knobs(self) -> dict[str, Any]:
        """Arguments that may make a diverging run converge, with their values."""
        knobs = {"lr_images": self.lr_images}
        if self.dam is not None and self.dam.weight > 0:
            knobs["lr_masks"] = self.lr_masks
        return knobs

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
        """Write the condensed set into the run's folder.

        Raises:
            DivergenceError: the run ended with too many steps left out.
        """
        self._check_guard()
        left_out = self._guard.left_out()
        if left_out:
            listed = "; ".join(f"{name}: {count}" for name, count in left_out.items())
            rank_zero_info(f"Steps with something left out or held: {listed}")
        self._save_condensed()

    def _save_condensed(self, again: bool = True) -> None:
        path = run_folder(self.trainer) / "condensed.safetensors"
        wanted = self.trainer.is_global_zero and not is_rehearsal(self.trainer)
        if wanted and (again or not path.exists()):
            self.condensed_set().save(path)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a condensed set made from the checkpoint must tell."""
        checkpoint["condenser"] = {
            "class": type(self).__qualname__,
            "seed": self.seed,
            "steps": self.global_step,
            "provenance": self._provenance,
            "resumed": self._resumed,
            "clipping": self._clipping(),
        }
        if self._whitening is not None:
            checkpoint["condenser"]["whitening"] = list(self._whitening)
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
        whitening = saved.get("whitening") and Whitening(*saved["whitening"])
        if self._provenance:
            check_whitening(self._whitening, whitening)
        check_data(self._provenance, saved["provenance"])
        changed = changed_arguments(self.hparams, theirs)
        changed |= changed_data(self._provenance, saved["provenance"])
        if self._trainer is not None:
            changed |= changed_clipping(self._clipping(), saved.get("clipping", {}))
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
        self._resumed = list(saved.get("resumed", []))
        if self._trainer is not None and self.trainer.training:
            of_images = of_the_images(changed)
            if of_images:
                step = {"step": saved["steps"], "was": {k: of_images[k][1] for k in of_images}}
                self._resumed.append(as_json(step))
        elif self.ledger is not None and self._trainer is not None and self.trainer.testing:
            check_described(changed, self._resumed)
        if "data" in changed and self._trainer is not None and not self.trainer.training:
            rank_zero_info(
                "The checkpoint's images were made of other training images than the data module "
                "has (other files, domains, split_seed or validation_share); test images may be "
                "among them."
            )
        if self._trainer is None or not self.trainer.training:
            # The images were made from those data, whatever they are tested on.
            self._provenance, self._whitening = saved["provenance"], whitening
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
            trainer = {
                "max_steps": self.trainer.max_steps,
                "precision": self.trainer.precision,
                **self._clipping(),
            }
        hparams = as_json({k: v for k, v in self.hparams.items() if not k.startswith("_")})
        unknown = unknown_data(self._num_classes, self.images.shape[1])
        provenance = {**unknown, **self._provenance}
        metadata = {
            **self.describe(),
            "version": __version__,
            "versions": {"torch": torch.__version__, "lightning": lightning.__version__},
            "config": {"model": hparams, "data": provenance.pop("data"), "trainer": trainer},
            "recipe": self.recipe.as_dict(),
            **provenance,
            # Beside the arguments that it ended with.
            **({"resumed": self._resumed} if self._resumed else {}),
        }
        images = self.images.detach().float().cpu()
        return CondensedSet(images, self.labels.cpu(), metadata, self._whitening)

    # For evaluation.

    @property
    def protocol(self) -> Recipe:
        """How images are evaluated of which nothing was learned but what they show."""
        return self._recipe

    @property
    def recipe(self) -> Recipe:
        """How the condensed images are evaluated: by the `protocol`, or as a method learned to."""
        return self.protocol

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
    _has_begun = False
    _accelerator_budget = 1024

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load images and masks, making them first where their shapes are not known yet."""
        self._build_as(state_dict)
        if "images" in state_dict:
            # Lightning casts to double only after this, which would round what is loaded.
            self.to(state_dict["images"].dtype)
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
