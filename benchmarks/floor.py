"""The least work of a task, and how long it takes at the machine's own rates.

Operations are those of convolutions and matrix products as `FlopCounterMode` counts them, two for
a multiply and add, of what no implementation can leave out: real images forward; synthetic images
forward and backward to the images; in the evaluation, forward and backward to the weights, and the
test images forward. Faster algorithms than the direct convolution are not considered.

Traffic is the output of every convolution and nothing else: forward, written once and read once by
the norm, activation and pooling behind it, which an ideal kernel does in one pass; backward, read
once more, and its gradient written once and read once. Images, weights, pooled activations,
augmentation and the optimiser are left out: together they are a fraction of this. An implementation
that keeps activations in caches can go below the traffic, none below the operations.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case
from benchmarks.machine import Precision, Rates
from dam_lightning.backbones import ConvNet

__all__ = ["Floor", "Work", "evaluation_work", "image_work", "step_work"]

_FORWARD_PASSES = 2
_BACKWARD_PASSES = 3
_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2}


class Floor(NamedTuple):
    """A lower bound in seconds.

    Attributes:
        compute: operations at the measured rate.
        traffic: bytes at the measured bandwidth.
    """

    compute: float
    traffic: float

    @property
    def seconds(self) -> float:
        """The larger of the two: both may go on at the same time."""
        return max(self)


class Work(NamedTuple):
    """What has to be done.

    Attributes:
        operations: floating-point operations.
        values: numbers moved to or from memory.
    """

    operations: float
    values: float

    def floor(self, rates: Rates, precision: Precision) -> Floor:
        """The time of this on a machine, with numbers of a precision."""
        return Floor(
            self.operations / rates.operations[precision],
            self.values * _BYTES[precision] / rates.bandwidth,
        )


class ImageWork(NamedTuple):
    """Work for one image.

    Attributes:
        forward: to the embedding.
        to_images: that, and backward to the image.
        to_weights: to the class scores, and backward to the weights.
        scored: to the class scores.
    """

    forward: Work
    to_images: Work
    to_weights: Work
    scored: Work


def image_work(case: Case) -> ImageWork:
    """Count the work of a case's network for one image; nothing is computed."""
    with torch.device("meta"):
        network = ConvNet(case.image_shape, case.num_classes, case.width, case.depth)
        image = torch.empty(1, *case.image_shape)
    sizes: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.append(output.numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        network.features(image)
    values = sum(sizes)
    with torch.no_grad(), FlopCounterMode(display=False) as scored:
        network(image)
    with FlopCounterMode(display=False) as to_weights:
        network(image).sum().backward()
    network.requires_grad_(False)
    with FlopCounterMode(display=False) as to_images:
        network.features(image.requires_grad_()).sum().backward()  # type: ignore[no-untyped-call]
    both = _FORWARD_PASSES + _BACKWARD_PASSES
    return ImageWork(
        forward=Work(forward.get_total_flops(), _FORWARD_PASSES * values),
        to_images=Work(to_images.get_total_flops(), both * values),
        to_weights=Work(to_weights.get_total_flops(), both * values),
        scored=Work(scored.get_total_flops(), _FORWARD_PASSES * values),
    )


def _total(*parts: tuple[int, Work]) -> Work:
    return Work(
        sum(count * work.operations for count, work in parts),
        sum(count * work.values for count, work in parts),
    )


def step_work(case: Case, dam: bool) -> Work:
    """One step of DM: all real images forward, all (views of) synthetic images to the images."""
    image = image_work(case)
    groups, views = case.num_classes, 1
    if dam:
        groups, views = groups + case.num_domains, views + case.num_domains
    return _total(
        (groups * case.batch_real, image.forward), (views * case.num_synthetic, image.to_images)
    )


def evaluation_work(case: Case) -> Work:
    """Training of one network, and its test."""
    image = image_work(case)
    return _total(
        (case.epochs * case.num_synthetic, image.to_weights), (case.num_test, image.scored)
    )
