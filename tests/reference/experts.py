"""Expert trajectories (Cazenavette and others, CVPR 2022): plain SGD on real images, kept by epoch.

No momentum, no weight decay, no decay of the step size. Nothing is drawn here: the orders of the
images are arguments, and ``augment`` is told the epoch and the batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .evaluation import Augment


def flat_parameters(network: nn.Module) -> Tensor:
    """A copy of all parameters as one vector, in the order of ``named_parameters``."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def train_epoch(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    order: Tensor,
    lr: float,
    batch_size: int,
    augment: Augment | None = None,
    epoch: int = 0,
) -> None:
    """Train ``network`` in place on all images, batch after batch in the order of ``order``."""
    assert sorted(order.tolist()) == list(range(len(images)))
    network.train()
    parameters = list(network.parameters())
    for number, first in enumerate(range(0, len(images), batch_size)):
        chosen = order[first : first + batch_size]
        batch = images[chosen]
        if augment is not None:
            batch = augment(batch, epoch, number)
        loss = F.cross_entropy(network(batch), labels[chosen])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.copy_(parameter - lr * gradient)


def train_expert(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    orders: Sequence[Tensor],
    lr: float,
    batch_size: int,
    augment: Augment | None = None,
) -> list[Tensor]:
    """Train ``network`` in place, one epoch per order; E + 1 flat vectors, the first untrained."""
    trajectory = [flat_parameters(network)]
    for epoch, order in enumerate(orders):
        train_epoch(network, images, labels, order, lr, batch_size, augment, epoch)
        trajectory.append(flat_parameters(network))
    return trajectory
