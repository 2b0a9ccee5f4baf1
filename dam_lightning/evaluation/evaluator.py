"""The protocol: train several fresh networks, then test them on real images."""

import math
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from functools import partial

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from dam_lightning.backbones import Backbone
from dam_lightning.data.sampling import RealImages
from dam_lightning.evaluation.accuracy import Accuracy, Scores
from dam_lightning.evaluation.answers import Answers
from dam_lightning.evaluation.recipe import Recipe
from dam_lightning.evaluation.training import computation, train_block, training_compiles
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
        recipe: of which all of them are, so that they may be computed together and compiled; None:
            each is computed by itself.
        num_batches: that will come, which decides whether compiling pays.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        num_classes: int,
        num_domains: int,
        device: torch.device,
        recipe: Recipe | None = None,
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
        if self._recipe is None:
            scores = [network(images.float()) for network in self.networks]
            return torch.stack([score.argmax(dim=1) for score in scores])
        # Outside inference mode, whose tensors a compiled function may not take.
        with torch.inference_mode(False), torch.no_grad():
            images = images.to(torch.float32, copy=True)
            if self._answers is None:
                self._answers = self._prepared(images, self._recipe)
            return self._answers(images)

    def _prepared(self, images: Tensor, recipe: Recipe) -> Answers:
        # A loader without a length may end at once.
        steps = int(self._num_batches) if math.isfinite(self._num_batches) else 0
        passes = len(self.networks) * steps * len(images)
        compiles = recipe.compiles(work(images.device, images.shape[1:], passes, steps))
        networks = computation(images, self._num_classes, recipe)
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
) -> list[nn.Module]:
    """Train the networks of the recipe, saying how long they take.

    On accelerators side by side, on a CPU one after another; each is the same either way.

    Args:
        training_set: what each network is trained on.
        num_classes: C.
        recipe: architecture and training.
        seed: key of all draws.
        max_images: images whose activations may be in memory together, which sets how many networks
            are trained side by side; None: 256 on a CPU, 8192 elsewhere.
    """
    trained: list[nn.Module] = []
    waiting: list[tuple[Tensor | RealImages, Tensor]] = []
    start = time.perf_counter()
    for number in range(recipe.num_networks):
        waiting.append(training_set(number))
        images, _ = waiting[0]
        networks = computation(images, num_classes, recipe)
        together = networks.together(min(recipe.batch_size, len(images)), max_images)
        if len(waiting) < min(together, recipe.num_networks - len(trained)):
            continue
        numbers = range(len(trained), number + 1)
        train = partial(
            train_block,
            networks,
            num_classes=num_classes,
            recipe=recipe,
            seed=seed,
            compile=training_compiles(images, recipe, recipe.num_networks),
            max_images=max_images,
        )
        trained += _as_far_as_possible(train, waiting, numbers)
        waiting = []
        several = f"s {numbers[0] + 1} to" if len(numbers) > 1 else ""
        seconds = time.perf_counter() - start
        rank_zero_info(
            f"Trained network{several} {number + 1} of {recipe.num_networks} ({seconds:.0f} s)"
        )
    return trained


def _as_far_as_possible(
    train: Callable[..., list[Backbone]],
    sets: Sequence[tuple[Tensor | RealImages, Tensor]],
    numbers: Sequence[int],
) -> list[Backbone]:
    """Side by side as far as training sets, which must be of one kind, and the memory allow."""
    try:
        if len({(type(images), images.shape) for images, _ in sets}) == 1:
            return train(sets=sets, numbers=numbers)
    except torch.OutOfMemoryError:
        if len(sets) == 1:
            raise
        rank_zero_warn(
            f"The memory is too small for {len(sets)} networks side by side: half of them"
        )
    half = len(sets) // 2
    return [
        *_as_far_as_possible(train, sets[:half], numbers[:half]),
        *_as_far_as_possible(train, sets[half:], numbers[half:]),
    ]


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
    num_batches = len(batches) if isinstance(batches, Sized) else 0
    evaluator = Evaluator(networks, num_classes, num_domains, device, recipe, num_batches)
    for images, labels, domains in batches:
        evaluator.update(images, labels, domains)
    return evaluator.scores()
