"""The protocol: train several fresh networks, then test them on real images."""

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from dam_lightning.data.sampling import RealImages
from dam_lightning.evaluation.accuracy import Accuracy, Scores
from dam_lightning.evaluation.recipe import Recipe
from dam_lightning.evaluation.training import train_network

__all__ = ["Evaluator", "TrainingSet", "evaluate", "train_networks"]

TrainingSet = Callable[[int], tuple[Tensor | RealImages, Tensor]]
"""What network number n is trained on: normalised images (N, C, H, W), or real images that are
normalised batch by batch, and labels (N,)."""


class Evaluator:
    """Networks and the count of what they get right.

    Args:
        networks: K trained networks.
        num_classes: C.
        num_domains: D, at least 1.
        device: where the networks are and test batches come.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        num_classes: int,
        num_domains: int,
        device: torch.device,
    ) -> None:
        self.networks = networks
        self._accuracy = Accuracy(len(networks), num_classes, num_domains).to(device)

    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor, domains: Tensor) -> None:
        """Test all networks on a batch: (N, C, H, W) normalised, (N,) and (N,) int64."""
        # In float32, whatever the Trainer's precision makes of its steps and their batches.
        with torch.autocast(images.device.type, enabled=False):
            scores = [network(images.float()) for network in self.networks]
        predictions = torch.stack([score.argmax(dim=1) for score in scores])
        self._accuracy.update(predictions, labels, domains)

    def scores(self) -> Scores:
        """The accuracies so far, over all processes."""
        return Scores.of(self._accuracy.compute())


def train_networks(
    training_set: TrainingSet, num_classes: int, recipe: Recipe, seed: int
) -> list[nn.Module]:
    """Train the networks of the recipe, one after the other, saying how long they take."""
    networks: list[nn.Module] = []
    start = time.perf_counter()
    for number in range(recipe.num_networks):
        images, labels = training_set(number)
        networks.append(
            train_network(images, labels, num_classes, recipe, seed=seed, number=number)
        )
        seconds = time.perf_counter() - start
        rank_zero_info(f"Trained network {number + 1} of {recipe.num_networks} ({seconds:.0f} s)")
    return networks


def evaluate(
    training_set: TrainingSet,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    num_classes: int,
    num_domains: int,
    recipe: Recipe,
    seed: int,
) -> Scores:
    """The whole protocol outside Lightning's loops.

    Args:
        training_set: what each network is trained on.
        batches: real images, labels and domains, on the device of the training set.
        num_classes: C.
        num_domains: D.
        recipe: the protocol's settings.
        seed: key of all draws.
    """
    networks = train_networks(training_set, num_classes, recipe, seed)
    device = next(networks[0].parameters()).device
    evaluator = Evaluator(networks, num_classes, num_domains, device)
    for images, labels, domains in batches:
        evaluator.update(images, labels, domains)
    return evaluator.scores()
