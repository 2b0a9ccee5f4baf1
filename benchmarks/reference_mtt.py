"""The plain loop of MTT as a contender."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cases import SEED, Case
from benchmarks.contender import Contender
from benchmarks.data import random_images
from benchmarks.package_mtt import mtt_condenser, mtt_gradients
from benchmarks.package_step import step_outcome
from benchmarks.reference_inputs import fresh_network
from benchmarks.reference_state import Learned
from benchmarks.trajectories import COUNT, EXPERT_EPOCHS, MAX_START_EPOCH, random_trajectories
from dam_lightning.methods.expert_store import ExpertStore
from dam_lightning.randomness import numpy_generator
from tests.reference import mtt
from tests.reference.convnet import ConvNet

__all__ = ["ReferenceMTT"]


class ReferenceMTT(Contender):
    """One step of MTT: students are unrolled with the graph of all their steps.

    Args:
        case: the sizes.
        device: where to run.
        dam: with DAM or without.
    """

    def __init__(self, case: Case, device: torch.device, dam: bool) -> None:
        self._case = case
        self._device = device
        data = random_images(case, device, domains=dam)
        self._folder = tempfile.TemporaryDirectory()
        outputs = {"class": case.num_classes, **({"domain": case.num_domains} if dam else {})}
        self._stores: dict[str, ExpertStore] = {}
        # Their shapes; the parameters are the experts'.
        self._networks: dict[str, ConvNet] = {}
        for branch, number in outputs.items():
            self._stores[branch] = random_trajectories(
                case,
                data,
                Path(self._folder.name),
                device,
                None if branch == "class" else case.num_domains,
            )
            self._networks[branch] = fresh_network(case, device, branch, num_outputs=number)
        module = mtt_condenser(case, dam, self._folder.name).to(device)
        self._learned = Learned(module)
        self._labels = module.labels
        self._lr_step_size = module.lr_step_size
        self._step_sizes = {branch: module.step_size.detach() for branch in outputs}
        self._step = 0
        self._loss: float
        self._gradients: dict[str, Tensor | None] = {}

    def run(self) -> None:
        """One step: experts, batches, losses and gradients, SGD."""
        learned = self._learned
        result = mtt.mtt_step(
            learned.images,
            self._labels,
            learned.logits,
            learned.weight,
            learned.temperature,
            self._branch("class", len(learned.images)),
            self._branch("domain", self._case.num_domains * len(learned.images))
            if "domain" in self._stores
            else None,
        )
        self._loss = result.loss_class.item() + learned.weight * result.loss_domain.item()
        learned.update(result.grad_images, result.grad_logits)
        of_sizes = {"class": result.grad_step_size, "domain": result.grad_step_size_domain}
        for branch, size in self._step_sizes.items():
            gradient = of_sizes[branch]
            assert gradient is not None
            self._step_sizes[branch] = learned.updated(branch, size, gradient, self._lr_step_size)
        self._gradients = mtt_gradients(
            result.grad_logits, [result.grad_step_size, result.grad_step_size_domain]
        )
        self._step += 1

    def _branch(self, branch: str, pool_size: int) -> mtt.Branch:
        """A student with what its steps draw."""
        expert = numpy_generator(SEED, f"expert/{branch}", self._step).integers(COUNT)
        # Both students start after the same epoch.
        epoch = int(numpy_generator(SEED, "start/class", self._step).integers(MAX_START_EPOCH))
        start, target = (
            self._stores[branch].parameters(int(expert), read).to(self._device)
            for read in (epoch, epoch + EXPERT_EPOCHS)
        )
        return mtt.Branch(
            self._networks[branch],
            start,
            target,
            self._batches(branch, pool_size),
            None,
            self._step_sizes[branch],
        )

    def _batches(self, branch: str, pool_size: int) -> list[Tensor]:
        """What the steps of a student see: orders of the pool, cut into batches."""
        steps, size = self._case.student_steps, self._case.num_synthetic
        generator = numpy_generator(SEED, f"student/{branch}", self._step)
        per_order = -(-pool_size // size)
        orders = [
            torch.from_numpy(generator.permutation(pool_size)).to(self._device)
            for _ in range(-(-steps // per_order))
        ]
        return mtt.inner_batches(orders, size, steps)

    def outcome(self) -> dict[str, float]:
        """What the step computed."""
        learned = self._learned
        return step_outcome(self._loss, learned.images, learned.start, self._gradients)
