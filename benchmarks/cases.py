"""The sizes that are timed, by name. A new cell of the paper's tables is a new line here."""

from dataclasses import dataclass

__all__ = ["CASES", "SEED", "Case"]

SEED = 0
"""Key of every draw, on both sides."""


@dataclass(frozen=True)
class Case:
    """One setting of the paper, with random images in place of the dataset.

    Attributes:
        name: what ``--cases`` calls it.
        image_size: height and width in pixels; three channels.
        num_classes: C.
        depth: blocks of the ConvNet.
        ipc: synthetic images per class.
        test_images_per_epoch: test images for each epoch of training in the evaluation, as many as
            the protocol has: the dataset's over 1001 epochs. So a short evaluation has the paper's
            mix of training and testing.
        width: channels of the ConvNet.
        batch_real: real images of each class and pseudo-domain in a step.
        num_domains: D.
        epochs: that the evaluation trains its network.
        inner_epochs: that DC trains its networks before every step; 0, as published for one image
            per class, where every step has new networks.
        student_steps: that MTT unrolls.
        experts: trained in a run.
        expert_batches: of ``batch_real`` images each, that are the experts' training data.
    """

    name: str
    image_size: int
    num_classes: int
    depth: int
    ipc: int
    test_images_per_epoch: int
    width: int = 128
    batch_real: int = 256
    num_domains: int = 4
    epochs: int = 50
    inner_epochs: int = 0
    student_steps: int = 20
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
        """Test images of the evaluation."""
        return self.test_images_per_epoch * self.epochs

    @property
    def backbone_args(self) -> dict[str, int]:
        """Options of the package's ConvNet."""
        return {"width": self.width, "depth": self.depth}


CASES = {
    case.name: case
    for case in (
        Case(
            "cifar10_ipc1",
            32,
            num_classes=10,
            depth=3,
            ipc=1,
            test_images_per_epoch=10,
            student_steps=50,
        ),
        # DC's published 50 inner epochs would take minutes of a CPU before every step.
        Case(
            "cifar10_ipc10",
            32,
            num_classes=10,
            depth=3,
            ipc=10,
            test_images_per_epoch=10,
            inner_epochs=5,
            student_steps=30,
        ),
        Case(
            "pacs_ipc1",
            64,
            num_classes=7,
            depth=4,
            ipc=1,
            test_images_per_epoch=1,
            student_steps=10,
        ),
    )
}
