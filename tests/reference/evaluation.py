"""The evaluation of the distribution-matching scripts for one network, step by step.

A loop of ``epoch + 1`` epochs; after the epoch with index ``epoch // 2 + 1`` the step size falls to
a tenth and a new optimiser starts, so that momentum begins again; one test after the last epoch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (batch of images, epoch index, batch index) -> images
Augment = Callable[[Tensor, int, int], Tensor]


class EvaluationResult(NamedTuple):
    accuracy: float
    predictions: Tensor
    train_losses: list[float]


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    permutation: Tensor,
    augment: Callable[[Tensor, int], Tensor] | None,
    batch_size: int,
) -> float:
    """One pass in the order of ``permutation``; returns the mean loss over its images."""
    network.train()
    loss_sum = 0.0
    for number, start in enumerate(range(0, len(images), batch_size)):
        chosen = permutation[start : start + batch_size]
        batch = images[chosen]
        if augment is not None:
            batch = augment(batch, number)
        loss = F.cross_entropy(network(batch), labels[chosen])
        loss_sum += loss.item() * len(chosen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss_sum / len(images)


def evaluate_synset(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    epoch: int,
    permutations: Sequence[Tensor],
    augment: Augment | None = None,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 256,
) -> EvaluationResult:
    """Train ``network`` in place on ``images`` and test it.

    ``permutations`` holds one order of the training images per epoch, ``epoch + 1`` of them.
    """
    assert len(permutations) == epoch + 1
    schedule = [epoch // 2 + 1]

    def new_optimizer() -> torch.optim.SGD:
        return torch.optim.SGD(
            network.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
        )

    optimizer = new_optimizer()
    train_losses = []
    for index in range(epoch + 1):
        in_epoch = None
        if augment is not None:

            def in_epoch(batch: Tensor, number: int, index: int = index) -> Tensor:
                return augment(batch, index, number)

        train_losses.append(
            train_epoch(
                network, optimizer, images, labels, permutations[index], in_epoch, batch_size
            )
        )
        if index in schedule:
            learning_rate *= 0.1
            optimizer = new_optimizer()

    network.eval()
    predictions = []
    with torch.no_grad():
        for start in range(0, len(test_images), batch_size):
            predictions.append(network(test_images[start : start + batch_size]).argmax(dim=1))
    predicted = torch.cat(predictions)
    correct = sum(int(p == y) for p, y in zip(predicted, test_labels, strict=True))
    return EvaluationResult(correct / len(test_labels), predicted, train_losses)
