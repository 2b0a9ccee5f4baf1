"""The protocol: train several fresh networks, then test them on real images."""

import math
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from functools import partial
from itertools import takewhile

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from dam_lightning.data.sampling import RealImages
from dam_lightning.evaluation.accuracy import Accuracy, Scores
from dam_lightning.evaluation.answers import Answers
from dam_lightning.evaluation.processes import collected, own_share
from dam_lightning.evaluation.recipe import Recipe
from dam_lightning.evaluation.training import (
    computation,
    fresh_network,
    train_block,
    training_compiles,
)
from dam_lightning.flat_network import NOT_PLAIN
from dam_lightning.side_by_side import work

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
        recipe: its backbone is what all of them are, and computes their scores from their
            parameters and buffers; it says whether that is compiled.
        num_batches: that will come, which decides whether compiling pays.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        num_classes: int,
        num_domains: int,
        device: torch.device,
        recipe: Recipe,
        num_batches: float = 0,
    ) -> None:
        self.networks = networks
        self._accuracy = Accuracy(len(networks), num_classes, num_domains).to(device)
        self._num_classes = num_classes
        self._recipe = recipe
        self._num_batches = num_batches
        self._answers: Answers | None = None

    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor, domains: Tensor) -> None:
        """Test all networks on a batch: (N, C, H, W) normalised, (N,) and (N,) int64."""
        # In float32, whatever the Trainer's precision makes of its steps and their batches, and
        # however networks were trained: scores that differ little would be equal in bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            predictions = self._predictions(images)
        self._accuracy.update(predictions, labels, domains)

    def _predictions(self, images: Tensor) -> Tensor:
        # Outside inference mode, whose tensors a compiled function may not take.
        with torch.inference_mode(False), torch.no_grad():
            images = images.to(torch.float32, copy=True)
            if self._answers is None:
                self._answers = self._prepared(images)
            return self._answers(images)

    def _prepared(self, images: Tensor) -> Answers:
        # A loader without a length may end at once.
        steps = int(self._num_batches) if math.isfinite(self._num_batches) else 0
        passes = len(self.networks) * steps * len(images)
        compiles = self._recipe.compiles(work(images.device, images.shape[1:], passes, steps))
        networks = computation(images, self._num_classes, self._recipe)
        return Answers(networks, self.networks, len(images), compiles)

    def scores(self) -> Scores:
        """The accuracies so far, over all processes."""
        return Scores.of(self._accuracy.compute())


def train_networks(
    training_set: TrainingSet,
    num_classes: int,
    recipe: Recipe,
    seed: int,
    max_images: int | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> list[nn.Module]:
    """Train the networks of the recipe, saying how long they take.

    On accelerators side by side, on a CPU one after another; several processes train some of them
    each, and then exchange them. Each network is the same in any case.

    Args:
        training_set: what each network is trained on.
        num_classes: C.
        recipe: architecture and training.
        seed: key of all draws.
        max_images: images whose activations may be in memory together, which sets how many networks
            are trained side by side; None: 256 on a CPU, 8192 elsewhere.
        rank: of this process.
        world_size: number of processes, which must have a process group where they are several.

    Returns:
        All networks, in evaluation mode.
    """
    numbers = own_share(recipe.num_networks, rank, world_size)
    own = _trained(training_set, num_classes, recipe, seed, max_images, numbers)

    def make() -> nn.Module:
        images, _ = training_set(0)
        return fresh_network(images, num_classes, recipe)

    return collected(own, recipe.num_networks, rank, world_size, make)


def _trained(
    training_set: TrainingSet,
    num_classes: int,
    recipe: Recipe,
    seed: int,
    max_images: int | None,
    numbers: Sequence[int],
) -> list[nn.Module]:
    """Networks of some numbers, in blocks."""
    trained: list[nn.Module] = []
    waiting: list[tuple[Tensor | RealImages, Tensor]] = []
    start, most = time.perf_counter(), len(numbers)
    while len(trained) < len(numbers):
        if not waiting:
            waiting.append(training_set(numbers[len(trained)]))
        images, _ = waiting[0]
        networks = computation(images, num_classes, recipe)
        compiles = training_compiles(images, recipe, recipe.num_networks)
        if compiles and not trained and not networks.is_plain:
            rank_zero_info(NOT_PLAIN)
        together = networks.together(min(recipe.batch_size, len(images)), max_images)
        together = min(together, most, len(numbers) - len(trained))
        while len(waiting) < together:
            waiting.append(training_set(numbers[len(trained) + len(waiting)]))
        # Training sets of one kind only; another may come behind.
        block = list(takewhile(partial(_alike, waiting[0]), waiting[:together]))
        try:
            found = train_block(
                networks,
                block,
                num_classes,
                recipe,
                seed=seed,
                numbers=numbers[len(trained) : len(trained) + len(block)],
                compile=compiles,
                max_images=max_images,
            )
        except torch.OutOfMemoryError:
            if len(block) == 1:
                raise
            rank_zero_warn(
                f"The memory is too small for {len(block)} networks side by side: half of them"
            )
            most = len(block) // 2
            continue
        first, trained, waiting = len(trained) + 1, [*trained, *found], waiting[len(block) :]
        several = f"s {first} to" if len(block) > 1 else ""
        count = f"{len(numbers)}"
        if len(numbers) < recipe.num_networks:
            count += f" (of {recipe.num_networks} of all processes)"
        seconds = time.perf_counter() - start
        rank_zero_info(f"Trained network{several} {len(trained)} of {count} ({seconds:.0f} s)")
    return trained


def _alike(
    one: tuple[Tensor | RealImages, Tensor], other: tuple[Tensor | RealImages, Tensor]
) -> bool:
    """Whether two training sets are of one kind and size."""
    return type(one[0]) is type(other[0]) and one[0].shape == other[0].shape


def evaluate(
    training_set: TrainingSet,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    num_classes: int,
    num_domains: int,
    recipe: Recipe,
    seed: int,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Scores:
    """The whole protocol outside Lightning's loops.

    Args:
        training_set: what each network is trained on.
        batches: real images, labels and domains, on the device of the training set.
        num_classes: C.
        num_domains: D.
        recipe: the protocol's settings.
        seed: key of all draws.
        rank: as of `train_networks`; every process tests on all ``batches``.
        world_size: as of `train_networks`.
    """
    networks = train_networks(
        training_set, num_classes, recipe, seed, rank=rank, world_size=world_size
    )
    device = next(networks[0].parameters()).device
    num_batches = len(batches) if isinstance(batches, Sized) else 0
    evaluator = Evaluator(networks, num_classes, num_domains, device, recipe, num_batches)
    for images, labels, domains in batches:
        evaluator.update(images, labels, domains)
    return evaluator.scores()
