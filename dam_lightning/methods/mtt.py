"""MTT: matching the training trajectories of experts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dam_lightning.condensed_set import CondensedSet
from dam_lightning.data.groups import GroupedBatch
from dam_lightning.evaluation.recipe import Recipe, RecipeOptions
from dam_lightning.files import check_writable
from dam_lightning.functional.host import to_device
from dam_lightning.methods.base import Branch, Condenser, DAMOptions
from dam_lightning.methods.draws import dealt_out
from dam_lightning.methods.expert_recipe import ExpertData, ExpertOptions, ExpertRecipe
from dam_lightning.methods.expert_set import ExpertSet
from dam_lightning.methods.gradients import carry_gradient
from dam_lightning.methods.student import InnerBatch, Student, inner_batches
from dam_lightning.randomness import numpy_generator

__all__ = ["MTT"]

_KEPT_PIXELS = 512 * 32 * 32
"""Pixels of images whose graph is kept: 0.5 GB with a compiled ConvNet, 2.5 GB with another."""


class _Passage(NamedTuple):
    """A piece of an expert's way.

    Attributes:
        expert: its number.
        start: the epoch after which a student takes over its parameters.
    """

    expert: int
    start: int


class MTT(Condenser):
    """Trajectory matching: a student trained on the synthetic images goes where experts went.

    Cazenavette et al., Dataset Distillation by Matching Training Trajectories (CVPR 2022);
    ``distill.py`` of GeorgeCazenavette/mtt-distillation. Experts are networks trained on the real
    data beforehand; those that are not found are trained at the beginning of a fit. The step size
    of the student is learned with the images, and networks that are trained on them use it.

    With DAM, experts trained on pseudo-domains are followed by a second student, which is trained
    on the masked views (appendix A of the DAM paper).

    Args:
        ipc: synthetic images per class.
        dam: as in `Condenser`, but with a weight of 0.01 unless given.
        lr_images: step size for the images.
        lr_step_size: step size for the student's step size.
        initial_step_size: of the student, before it is learned.
        student_steps: SGD steps of a student.
        expert_epochs: epochs of the expert that these steps are to make up for.
        max_start_epoch: students start after one of the first so many epochs, 0 included.
        batch_syn: synthetic images in a step of the student; None: all of them.
        batch_syn_domain: views in a step of the domain student, which are drawn from the views of
            all pseudo-domains together; None: as many as there are synthetic images.
        experts: which experts, see `ExpertOptions`.
        domain_experts: what is different for those of the pseudo-domains.
        experts_per_step: passages of experts, of each branch, whose mean loss a step is taken with.
        domain_start: whether the domain student starts after the ``"same"`` epoch as the other, or
            after one of its ``"own"``.
        domain_step_size: whether the domain student has a ``"separate"`` step size or shares it.
        adjoint: constant memory, whatever ``student_steps`` is, for up to a third more work; False
            keeps the graph of all steps. The gradient is the same. None: an adjoint where the
            images of all steps are more than ``max_images``, or, if that is not given either, than
            512 of 32x32 pixels; and where steps are compiled for an accelerator.
        max_loss: as in `Condenser`. The loss is 1 where the student stays where it started.
        recipe: as in `Condenser`, but the step size is the one that was learned unless given.
        **options: of `Condenser`.

    Attributes:
        step_size: parameter, the student's step size.
        step_size_domain: parameter, the domain student's, or None where it has none of its own.

    Raises:
        ValueError: if an argument is out of its range, or experts are to be trained for less long
            than they are followed.
    """

    step_size_domain: nn.Parameter | None

    def __init__(
        self,
        ipc: int = 1,
        dam: DAMOptions | None = None,
        lr_images: float = 1000.0,
        lr_step_size: float = 1e-5,
        initial_step_size: float = 0.01,
        student_steps: int = 20,
        expert_epochs: int = 3,
        max_start_epoch: int = 25,
        batch_syn: int | None = None,
        batch_syn_domain: int | None = None,
        experts: ExpertOptions | None = None,
        domain_experts: ExpertOptions | None = None,
        experts_per_step: int = 1,
        domain_start: Literal["same", "own"] = "same",
        domain_step_size: Literal["separate", "shared"] = "separate",
        adjoint: bool | None = None,
        max_loss: float | None = 100.0,
        recipe: RecipeOptions | None = None,
        **options: Any,
    ) -> None:
        weighted: DAMOptions | None = None if dam is None else {"weight": 0.01, **dam}
        super().__init__(
            ipc=ipc, dam=weighted, lr_images=lr_images, max_loss=max_loss, recipe=recipe, **options
        )
        for name, count in (
            ("student_steps", student_steps),
            ("expert_epochs", expert_epochs),
            ("max_start_epoch", max_start_epoch),
            ("batch_syn", batch_syn),
            ("batch_syn_domain", batch_syn_domain),
            ("experts_per_step", experts_per_step),
        ):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if not initial_step_size > 0:
            raise ValueError(f"initial_step_size must be above 0, got {initial_step_size}")
        if not lr_step_size >= 0:
            raise ValueError(f"lr_step_size must be 0 or above, got {lr_step_size}")
        for name, value, allowed in (
            ("domain_start", domain_start, ("same", "own")),
            ("domain_step_size", domain_step_size, ("separate", "shared")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        self.lr_step_size = lr_step_size
        self.student_steps = student_steps
        self.expert_epochs = expert_epochs
        self.max_start_epoch = max_start_epoch
        self.experts_per_step = experts_per_step
        self.domain_start = domain_start
        self.adjoint = adjoint
        self._batch_syn: dict[Branch, int | None] = {
            "class": batch_syn,
            "domain": batch_syn_domain,
        }
        self._rate_is_given = "lr" in (recipe or {})
        of_classes: ExpertOptions = {**(experts or {})}
        of_domains: ExpertOptions = {**of_classes, **(domain_experts or {})}
        self._expert_options: dict[Branch, ExpertOptions] = {
            "class": of_classes,
            "domain": of_domains,
        }
        for branch, asked in self._expert_options.items():
            self._check_experts(branch, asked)
        self._experts: dict[Branch, ExpertSet] = {}
        self._students: dict[Branch, Student] = {}
        self.step_size = nn.Parameter(torch.tensor(initial_step_size))
        self.step_size_domain = None
        if weighted is not None and domain_step_size == "separate":
            self.step_size_domain = nn.Parameter(torch.tensor(initial_step_size))
            # As the masks: what takes no part needs no gradient.
            self.step_size_domain.requires_grad_(weighted["weight"] != 0)

    def _check_experts(self, branch: Branch, asked: ExpertOptions) -> None:
        """Refuse what cannot be, before any work."""
        name = "experts" if branch == "class" else "domain_experts"
        unknown = sorted(set(asked) - set(ExpertOptions.__annotations__))
        if unknown:
            raise ValueError(
                f"{name}: there is no {', '.join(unknown)}; there are "
                f"{', '.join(ExpertOptions.__annotations__)}"
            )
        if asked.get("count", 1) < 1:
            raise ValueError(f"{name}.count must be at least 1, got {asked['count']}")
        epochs = asked.get("epochs", self._epochs_read)
        if epochs < self._epochs_read:
            raise ValueError(
                f"{name}.epochs is {epochs}, but max_start_epoch {self.max_start_epoch} and "
                f"expert_epochs {self.expert_epochs} read {self._epochs_read}: raise it, leave it "
                "out, or lower max_start_epoch"
            )
        self._expert_recipe(branch)

    @property
    def _epochs_read(self) -> int:
        """Epochs of an expert after which its parameters are read at the latest."""
        return self.max_start_epoch - 1 + self.expert_epochs

    def _expert_recipe(self, branch: Branch) -> ExpertRecipe:
        asked = self._expert_options[branch]
        return ExpertRecipe(
            self.backbone,
            self.backbone_args,
            self.augmentation if self.operations(branch) else None,
            lr=asked.get("lr", 0.01),
            batch_size=asked.get("batch_size", 256),
            seed=asked.get("seed", 0),
            precision=asked.get("precision", "float32"),
        )

    # Experts.

    def setup(self, stage: str) -> None:
        """In addition, find the experts, and train those that are missing.

        Raises:
            ValueError: in addition, if a folder holds other experts than those asked for, too short
                ones or damaged files, or the backbone has batch normalisation.
        """
        super().setup(stage)
        if stage != "fit":
            return
        self._experts = {"class": self._expert_set("class", None)}
        if self.dam is not None and self.dam.weight > 0:
            self._experts["domain"] = self._expert_set("domain", self.dam.num_domains)
        rank, world_size = self._rank_and_world_size
        # All are looked at before any is trained.
        missing = {
            branch: experts.missing(self._epochs_trained(branch))
            for branch, experts in self._experts.items()
        }
        # One process looks for all: another may look when some are there already.
        missing = self.trainer.strategy.broadcast(missing, src=0)
        for branch, numbers in missing.items():
            if numbers:
                check_writable(self._experts[branch].store.folder, "experts.folder")
            share = numbers[rank::world_size]
            if share:
                self._experts[branch].train_with_progress(
                    share,
                    self._epochs_trained(branch),
                    show=rank == 0,
                )
        self.trainer.strategy.barrier("experts")
        for branch, experts in self._experts.items():
            if experts.missing(self._epochs_trained(branch)):
                raise FileNotFoundError(
                    f"experts that other processes trained are not in {experts.store.folder}: "
                    "give experts.folder a folder that all processes share"
                )

    def forget_compiled(self) -> None:
        """In addition, the students."""
        super().forget_compiled()
        self._students = {}

    def _expert_set(self, branch: Branch, num_domains: int | None) -> ExpertSet:
        asked = self._expert_options[branch]
        found = ExpertSet(
            ExpertData(self._data, num_domains, self.trainer.strategy.root_device),
            self._expert_recipe(branch),
            asked.get("count", 100),
            asked.get("folder"),
            asked.get("compile"),
        )
        found.check_epochs(
            self._epochs_read,
            f"max_start_epoch {self.max_start_epoch} and expert_epochs {self.expert_epochs}",
        )
        return found

    def _epochs_trained(self, branch: Branch) -> int:
        return self._expert_options[branch].get("epochs", self._epochs_read)

    @property
    def units(self) -> int:
        """Passages of experts, of all branches."""
        return self.experts_per_step * (2 if self._num_matched_domains else 1)

    _raise_units = "raise experts_per_step, or "

    # The loss.

    def network_state(self, step: int) -> Sequence[_Passage]:
        """Which experts the students of a step follow, and from where."""
        return self._passages("class", "class", step)

    def domain_state(self, step: int, state: Any) -> Sequence[_Passage]:
        """The same for the domain students: other experts."""
        return self._passages("domain", "class" if self.domain_start == "same" else "domain", step)

    def _passages(self, branch: Branch, starts: Branch, step: int) -> list[_Passage]:
        passages = []
        for unit in range(self.experts_per_step):
            expert = numpy_generator(self.seed, f"expert/{branch}", step, unit)
            start = numpy_generator(self.seed, f"start/{starts}", step, unit)
            passages.append(
                _Passage(
                    int(expert.integers(self._experts[branch].count)),
                    int(start.integers(self.max_start_epoch)),
                )
            )
        return passages

    def grouping_loss(
        self, branch: Branch, batch: GroupedBatch, synthetic: Tensor, state: Sequence[_Passage]
    ) -> Tensor:
        """Mean loss of the students of a branch; real images take part through experts only."""
        groups, each = synthetic.shape[:2]
        pool = synthetic.detach().flatten(0, 1)
        labels = torch.arange(groups, device=pool.device).repeat_interleave(each)
        step_size = self.step_size
        if branch == "domain" and self.step_size_domain is not None:
            step_size = self.step_size_domain
        experts = self._experts[branch]
        value = torch.zeros((), device=pool.device, dtype=pool.dtype)
        of_pool, of_step_size = torch.zeros_like(pool), torch.zeros_like(step_size)
        rank, world_size = self._rank_and_world_size
        first = 0 if branch == "class" else len(state)
        for unit in dealt_out(len(state), rank, world_size, first):
            expert, start = state[unit]
            way = experts.segment(expert, start, start + self.expert_epochs)
            batches = inner_batches(
                numpy_generator(self.seed, f"student/{branch}", batch.step, unit),
                len(pool),
                self._batch_syn[branch] or len(self.images),
                self.student_steps,
                self.operations(branch),
                pool,
            )
            with self.forward_precision():
                result = self._student(branch).match(
                    pool,
                    labels,
                    batches,
                    step_size,
                    *(to_device(end, pool.device).to(pool.dtype) for end in way),
                    adjoint=self._needs_adjoint(batches),
                )
            value += result.loss
            of_pool += result.images
            of_step_size += result.step_size
        # The mean over passages; strategies average over processes.
        share = world_size / len(state)
        return carry_gradient(
            value * share,
            [of_pool.view_as(synthetic) * share, of_step_size * share],
            [synthetic, step_size],
        )

    def _student(self, branch: Branch) -> Student:
        """The one student of a branch, which is compiled once."""
        if branch not in self._students:
            self._students[branch] = Student(
                self._experts[branch].network, self.images_at_once, self.compiles
            )
        return self._students[branch]

    def _needs_adjoint(self, batches: Sequence[InnerBatch]) -> bool:
        if self.adjoint is not None:
            return self.adjoint
        if self.compiles and self.device.type != "cpu":
            return True
        most = self._max_images or _KEPT_PIXELS // self.images.shape[-2:].numel()
        return sum(len(batch.indices) for batch in batches) > most

    # What is learned, and what comes out.

    def parameter_groups(self) -> list[dict[str, Any]]:
        """As of `Condenser`, and the step sizes, which must stay above 0."""
        sizes = [self.step_size, self.step_size_domain]
        learned = {
            "params": [size for size in sizes if size is not None],
            "lr": self.lr_step_size,
            "positive": True,
        }
        return [*super().parameter_groups(), learned]

    def knobs(self) -> dict[str, Any]:
        """Arguments that may make a diverging run converge, with their values."""
        return {
            **super().knobs(),
            "lr_step_size": self.lr_step_size,
            "student_steps": self.student_steps,
        }

    @property
    def recipe(self) -> Recipe:
        """How the condensed images are evaluated: with the step size that was learned for them."""
        if self._rate_is_given:
            return self.protocol
        return replace(self.protocol, lr=float(self.step_size.detach()))

    def condensed_set(self) -> CondensedSet:
        """As of `Condenser`, with the step size."""
        made = super().condensed_set()
        made.metadata["step_size"] = float(self.step_size.detach())
        return made
