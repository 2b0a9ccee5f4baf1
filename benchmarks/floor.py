"""The least work of a task, and how long it takes at the machine's own rates.

Operations are those of convolutions and matrix products as `FlopCounterMode` counts them, two for
a multiply and add, of what no implementation can leave out: real images forward; synthetic images
forward and backward to the images; in the evaluation, forward and backward to the weights, and the
test images forward. Faster algorithms than the direct convolution are not considered.

Second-order work is counted for an image alike, by differentiating a slope of the loss along the
weights once more, with the cross-entropy as loss. DC needs that of synthetic images, back to them,
and of real images the gradient of the weights; MTT needs, of every image in every step of a
student, that back to the image and to the weights (but in the first step, whose weights are given);
training, in DC's inner loop and of experts, needs the gradient of the weights. PyTorch's second
backward of a convolution goes to the weights also where nobody asks for that, in DC; the floor has
none of it. Whatever is computed twice to save memory, as with ``adjoint``, is not in it either.

Traffic is the output of every convolution and nothing else: forward, written once and read once by
the norm, activation and pooling behind it, which an ideal kernel does in one pass; backward, read
once more, and its gradient written once and read once. Backward of that: on the way up through the
layers it and its gradient read once more, and what comes of the gradient written once and read
once; on the way down as in any backward. Images, weights, pooled activations, augmentation and the
optimiser are left out: together they are a fraction of this. An implementation that keeps
activations in caches can go below the traffic, none below the operations.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case
from benchmarks.rates import Precision, Rates
from dam_lightning.backbones import ConvNet

__all__ = [
    "Floor",
    "Work",
    "dc_iteration_work",
    "dc_work",
    "evaluation_work",
    "expert_work",
    "image_work",
    "mtt_bytes",
    "mtt_work",
    "step_work",
]

_FORWARD_PASSES = 2
_BACKWARD_PASSES = 3
_SECOND_PASSES = 4 + _BACKWARD_PASSES
_BYTES: dict[Precision, int] = {"float32": 4, "tf32": 4, "bfloat16": 2}


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
            self.operations / rates.of(precision),
            self.values * _BYTES[precision] / rates.bandwidth,
        )


class ImageWork(NamedTuple):
    """Work for one image.

    Attributes:
        forward: to the embedding.
        to_images: that, and backward to the image.
        to_weights: to the class scores, and backward to the weights.
        scored: to the class scores.
        matched: to the weights, and backward of that to the image.
        unrolled: to the weights, and backward of that to the image and to the weights.
    """

    forward: Work
    to_images: Work
    to_weights: Work
    scored: Work
    matched: Work
    unrolled: Work


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
    unrolled = _second_order_operations(network, image)
    # What of it goes to the weights is as much as the first backward: to all weights, and to the
    # inputs of all layers but the first.
    matched = unrolled - (to_weights.get_total_flops() - scored.get_total_flops())
    with FlopCounterMode(display=False) as to_images:
        network.features(image.requires_grad_()).sum().backward()  # type: ignore[no-untyped-call]
    both = _FORWARD_PASSES + _BACKWARD_PASSES
    return ImageWork(
        forward=Work(forward.get_total_flops(), _FORWARD_PASSES * values),
        to_images=Work(to_images.get_total_flops(), both * values),
        to_weights=Work(to_weights.get_total_flops(), both * values),
        scored=Work(scored.get_total_flops(), _FORWARD_PASSES * values),
        matched=Work(matched, (both + _SECOND_PASSES) * values),
        unrolled=Work(unrolled, (both + _SECOND_PASSES) * values),
    )


def _second_order_operations(network: nn.Module, image: Tensor) -> int:
    """Of a gradient with respect to the weights, and backward of that to everything."""
    label = torch.zeros(1, dtype=torch.int64, device=image.device)

    def loss(parameters: Mapping[str, Tensor], image: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, dict(parameters), (image,)), label)

    def slope(parameters: Mapping[str, Tensor], image: Tensor) -> Tensor:
        return torch.stack([g.sum() for g in grad(loss)(parameters, image).values()]).sum()

    with FlopCounterMode(display=False) as counter:
        grad(slope, argnums=(0, 1))(dict(network.named_parameters()), image)
    return int(counter.get_total_flops())


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
    """Training of all networks, and their test."""
    image = image_work(case)
    return _total(
        (case.networks * case.epochs * case.num_synthetic, image.to_weights),
        (case.networks * case.num_test, image.scored),
    )


def dc_work(case: Case, dam: bool) -> Work:
    """One step of DC: gradients of real and synthetic images, and the training before it."""
    return _dc_work(case, dam, steps=1, trainings=1)


def dc_iteration_work(case: Case, dam: bool) -> Work:
    """All steps of DC with the same networks, and their training between two steps."""
    return _dc_work(case, dam, case.outer_loop, case.outer_loop - 1)


def _dc_work(case: Case, dam: bool, steps: int, trainings: int) -> Work:
    # Groups of real images, each of them an output of the network, and images to match them with.
    branches = [(case.num_classes, case.num_synthetic)]
    if dam:
        branches.append((case.num_domains, case.num_domains * case.num_synthetic))
    parts = []
    for groups, synthetic in branches:
        image = image_work(replace(case, num_classes=groups))
        trained = trainings * case.inner_epochs * synthetic
        parts += [
            (steps * groups * case.batch_real + trained, image.to_weights),
            (steps * synthetic, image.matched),
        ]
    return _total(*parts)


def mtt_work(case: Case, dam: bool) -> Work:
    """One step of MTT: a student for each branch, with batches of as many images as there are."""
    parts = []
    for outputs in (case.num_classes, case.num_domains) if dam else (case.num_classes,):
        image = image_work(replace(case, num_classes=outputs))
        parts += [
            (case.num_synthetic, image.matched),
            ((case.student_steps - 1) * case.num_synthetic, image.unrolled),
        ]
    return _total(*parts)


def mtt_bytes(case: Case, dam: bool) -> float:
    """What the graph of all steps of MTT's students takes, in float32.

    PyTorch keeps 4.3 times the outputs of the convolutions (measured) for a gradient that is
    differentiated again. Parameters are little beside that.
    """
    image = image_work(case)
    outputs = image.forward.values / _FORWARD_PASSES
    values = case.student_steps * (case.num_synthetic * 4.3 * outputs)
    return 4 * values * (2 if dam else 1)


def expert_work(case: Case) -> Work:
    """One epoch of all experts of a case."""
    image = image_work(case)
    return _total((case.experts * case.expert_batches * case.batch_real, image.to_weights))
