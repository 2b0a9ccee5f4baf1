"""The plain loop of DC as a contender."""

import importlib

import torch

from benchmarks.cases import SEED, Case
from benchmarks.contender import Contender
from benchmarks.package_dc import dc_condenser
from benchmarks.package_step import step_outcome
from benchmarks.reference_inputs import RealGroups, fresh_network
from benchmarks.reference_state import Learned
from dam_lightning.randomness import numpy_generator
from tests.reference import dm
from tests.reference.convnet import ConvNet

# By name, because what it imports is not typed as strictly as the benchmarks.
_dc = importlib.import_module("tests.reference.dc")

__all__ = ["ReferenceDC"]

_LR_NETWORK = 0.01
_BATCH_TRAIN = 256


class ReferenceDC(Contender):
    """One step of DC: inner training image by image, matching group by group.

    Args:
        case: the sizes.
        device: where to run.
        dam: with DAM or without.
        iteration: a run is a whole iteration: all steps with the same networks.
    """

    def __init__(
        self, case: Case, device: torch.device, dam: bool, iteration: bool = False
    ) -> None:
        self._case = case
        self._steps = case.outer_loop if iteration else 1
        # Steps after which networks are new; None: never.
        self._outer_loop = case.outer_loop if iteration or not case.inner_epochs else None
        self._device = device
        self._real = RealGroups(case, device, dam)
        self._learned = Learned(dc_condenser(case, dam).to(device))
        self._networks: dict[str, ConvNet] = {}
        self._step = 0
        self._loss: float
        self._grad_logits: torch.Tensor | None = None

    def run(self) -> None:
        """A step, or all of an iteration."""
        for _ in range(self._steps):
            self._take_step()

    def _take_step(self) -> None:
        """Networks, inputs, losses and gradients, SGD."""
        learned = self._learned
        iteration, position = divmod(self._step, self._outer_loop or self._step + 1)
        if position == 0:
            self._draw_networks(iteration)
        else:
            self._train_networks()
        result = _dc.dc_step(
            learned.images,
            self._case.ipc,
            learned.logits,
            learned.weight,
            learned.temperature,
            self._networks["class"],
            self._networks.get("domain"),
            self._real.images("class", self._step),
            self._real.images("domain", self._step),
        )
        self._loss = result.loss_class.item() + learned.weight * result.loss_domain.item()
        self._grad_logits = result.grad_logits
        learned.update(result.grad_images, result.grad_logits)
        self._step += 1

    def _draw_networks(self, iteration: int) -> None:
        case = self._case
        self._networks = {"class": fresh_network(case, self._device, "network", iteration)}
        if self._learned.logits is not None:
            self._networks["domain"] = fresh_network(
                case, self._device, "network/domain", iteration, num_outputs=case.num_domains
            )

    def _train_networks(self) -> None:
        """On the images, and on all their views."""
        learned, case = self._learned, self._case
        pools = {"class": [learned.images]}
        if learned.logits is not None:
            pools["domain"] = dm.domain_views(learned.images, learned.logits, learned.temperature)
        for branch, pool in pools.items():
            images = torch.cat(pool)
            each = case.ipc if branch == "class" else case.num_synthetic
            labels = torch.tensor([n // each for n in range(len(images))], device=self._device)
            orders = []
            for epoch in range(case.inner_epochs):
                generator = numpy_generator(SEED, f"inner/{branch}", self._step, epoch)
                orders.append(torch.from_numpy(generator.permutation(len(images))))
            _dc.inner_training(
                self._networks[branch], images, labels, orders, _LR_NETWORK, _BATCH_TRAIN
            )

    def outcome(self) -> dict[str, float]:
        """What the step computed."""
        learned = self._learned
        return step_outcome(self._loss, learned.images, learned.start, {"masks": self._grad_logits})
