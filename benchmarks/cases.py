"""The sizes that are timed, by name: the cells of the paper's tables of costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dam_lightning.methods.dc import LOOPS

__all__ = ["CASES", "DEFAULT_CASES", "PUBLISHED_EPOCHS", "SEED", "Case"]

SEED = 0
"""Key of every draw, on both sides."""

PUBLISHED_EPOCHS = 1001
"""Epochs of a network in the protocol."""

_CPU_STEPS = 5
"""Epochs of DC's inner training and steps of MTT's students on a CPU, where there are many images:
each costs what the first does, and all of them would take minutes."""


@dataclass(frozen=True)
class Case:
    """One setting of the paper, with random images in place of the dataset.

    Attributes:
        name: what ``--cases`` calls it.
        image_size: height and width in pixels; three channels.
        num_classes: C.
        depth: blocks of the ConvNet.
        ipc: synthetic images per class.
        train_images: of the dataset; only the time of whole experts depends on it.
        test_images: of the dataset.
        student_steps: that MTT unrolls.
        methods: that the paper gives costs of.
        width: channels of the ConvNet.
        batch_real: real images of each class and pseudo-domain in a step.
        num_domains: D.
        networks: that the evaluation trains.
        epochs: that it trains each.
        outer_loop: steps of DC with the same networks.
        inner_epochs: that DC trains them between two steps; 0 for one image per class, where every
            step has new networks.
        experts: trained in a run.
        expert_batches: of ``batch_real`` images each, that are the experts' training data.
    """

    name: str
    image_size: int
    num_classes: int
    depth: int
    ipc: int
    train_images: int
    test_images: int
    student_steps: int = 20
    methods: Sequence[str] = ("DM", "DC", "MTT")
    width: int = 128
    batch_real: int = 256
    num_domains: int = 4
    networks: int = 10
    epochs: int = 20
    outer_loop: int = 1
    inner_epochs: int = 0
    experts: int = 4
    expert_batches: int = 2

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return 3, self.image_size, self.image_size

    @property
    def num_synthetic(self) -> int:
        """Synthetic images of all classes, M."""
        return self.ipc * self.num_classes

    @property
    def num_test(self) -> int:
        """Test images of the evaluation.

        The same share of the dataset's as of the protocol's epochs, so that a short evaluation has
        the protocol's mix of training and testing.
        """
        return max(1, round(self.test_images * self.epochs / PUBLISHED_EPOCHS))

    @property
    def backbone_args(self) -> dict[str, int]:
        """Options of the package's ConvNet."""
        return {"width": self.width, "depth": self.depth}

    def on(self, device: torch.device) -> "Case":
        """Loops of a length that a device is timed with.

        Everywhere shorter than published where each round does the same; on a CPU more so. An
        accelerator trains as many experts at a time as fill it.
        """
        if device.type != "cpu":
            return replace(self, experts=32, expert_batches=4)
        if self.ipc == 1:
            return self
        return replace(
            self,
            epochs=5,
            inner_epochs=min(_CPU_STEPS, self.inner_epochs),
            student_steps=min(_CPU_STEPS, self.student_steps),
        )


# Sizes of the images, classes, depth of the network, images for training and for testing.
_DATASETS = {
    "cifar10": (32, 10, 3, 50_000, 10_000),
    "cifar100": (32, 100, 3, 50_000, 10_000),
    "tinyimagenet": (64, 200, 4, 100_000, 10_000),
    "pacs": (64, 7, 4, 8_977, 1_014),
    "vlcs": (64, 5, 4, 7_510, 3_219),
    "officehome": (64, 65, 4, 14_029, 1_559),
}


def _cell(dataset: str, ipc: int, student_steps: int, methods: str) -> Case:
    outer_loop, inner_epochs = LOOPS[ipc]
    return Case(
        f"{dataset}_ipc{ipc}",
        *_DATASETS[dataset][:3],
        ipc,
        *_DATASETS[dataset][3:],
        student_steps,
        tuple(methods.split()),
        outer_loop=outer_loop,
        inner_epochs=inner_epochs if outer_loop > 1 else 0,
    )


CASES = {
    case.name: case
    for case in (
        # The student's steps are those of appendix F, and of MTT where it has none.
        _cell("cifar10", 1, 50, "DM DC MTT"),
        _cell("cifar10", 10, 30, "DM DC MTT"),
        _cell("cifar10", 50, 30, "DM DC"),
        _cell("cifar100", 1, 20, "DM DC MTT"),
        _cell("cifar100", 10, 20, "DM DC"),
        _cell("cifar100", 50, 20, "DM"),
        _cell("tinyimagenet", 1, 10, "DM"),
        _cell("pacs", 1, 10, "DM DC MTT"),
        _cell("pacs", 10, 20, "DM DC MTT"),
        _cell("vlcs", 1, 10, "DM DC MTT"),
        _cell("vlcs", 10, 20, "DM DC"),
        _cell("officehome", 1, 10, "DM DC MTT"),
        _cell("officehome", 10, 10, "DM"),
    )
}
"""Every case, by name, with the published loops."""

DEFAULT_CASES = ("cifar10_ipc1", "cifar10_ipc10", "pacs_ipc1", "pacs_ipc10")
