"""Training experts, many side by side, and keeping their trajectories."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.func import grad_and_value, vmap

from dam_lightning.functional import augment, augmentation_parameters, strategy_operations
from dam_lightning.methods.expert_recipe import ExpertData, ExpertRecipe, Precision
from dam_lightning.methods.expert_store import ExpertStore
from dam_lightning.methods.flat_network import FlatNetwork
from dam_lightning.methods.stability import DivergenceError
from dam_lightning.randomness import numpy_generator, torch_generator

__all__ = ["ExpertEpoch", "train_experts"]


class ExpertEpoch(NamedTuple):
    """An epoch that some experts were trained.

    Attributes:
        numbers: which experts.
        epoch: counted from 1.
        loss: mean training loss.
    """

    numbers: Sequence[int]
    epoch: int
    loss: float


def train_experts(
    store: ExpertStore,
    data: ExpertData,
    recipe: ExpertRecipe,
    numbers: Sequence[int],
    epochs: int,
    max_images: int,
    compiled: bool = False,
) -> Iterator[ExpertEpoch]:
    """Train the experts that are not in the store, or not for so long, and put them there.

    An expert depends on its number, its data and its recipe, and neither on those trained beside it
    nor on whether it was trained in one go. What was begun and not finished is begun again.

    Args:
        store: where they go.
        data: what they learn.
        recipe: how.
        numbers: which experts.
        epochs: for how long.
        max_images: images whose activations may be in memory together, which sets how many experts
            are trained side by side: the images over the batch size.
        compiled: compile the step, which takes some seconds first and falls back with a warning.

    Yields:
        Every epoch of every block of experts.

    Raises:
        DivergenceError: if parameters are not finite after an epoch.
        ValueError: as of `ExpertStore.epochs`.
    """
    trained = {number: store.epochs(number) for number in numbers}
    missing = sorted((done or 0, n) for n, done in trained.items() if done is None or done < epochs)
    together = max(1, max_images // recipe.batch_size)
    for _, group in groupby(missing, key=lambda pair: pair[0]):
        same = [number for _, number in group]
        for start in range(0, len(same), together):
            block = same[start : start + together]
            yield from _train_block(store, data, recipe, block, epochs, trained[block[0]], compiled)


def _train_block(
    store: ExpertStore,
    data: ExpertData,
    recipe: ExpertRecipe,
    block: Sequence[int],
    epochs: int,
    trained: int | None,
    compiled: bool,
) -> Iterator[ExpertEpoch]:
    networks = [data.network(recipe, number) for number in block]
    network = networks[0]
    gradients = _Gradients(network, recipe.precision, compiled)
    if trained is None:
        snapshots = torch.stack([net.initial() for net in networks]).cpu().unsqueeze(1)
    else:
        snapshots = torch.stack([store.parameters(number, slice(None)) for number in block])
    device = network.initial().device
    vectors = snapshots[:, -1].to(device)
    kept = [snapshots]
    for epoch in range(snapshots.shape[1], epochs + 1):
        vectors, loss = _train_epoch(gradients, vectors, data, recipe, block, epoch)
        kept.append(vectors.cpu().unsqueeze(1))
        for number, finite in zip(block, kept[-1].isfinite().all(dim=2).tolist(), strict=True):
            if not finite[0]:
                raise DivergenceError(
                    f"expert {number} has parameters that are not finite after epoch {epoch}: "
                    f"lower the experts' lr (now {recipe.lr})"
                )
        yield ExpertEpoch(block, epoch, float(loss))
    for number, trajectory in zip(block, torch.cat(kept, dim=1), strict=True):
        store.save(number, trajectory)


def _train_epoch(
    gradients: "_Gradients",
    vectors: Tensor,
    data: ExpertData,
    recipe: ExpertRecipe,
    block: Sequence[int],
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """One epoch of all experts of a block: (E, P) -> (E, P) and the mean loss."""
    device = vectors.device
    stream = f"expert/{data.kind}"
    orders = torch.stack(
        [
            torch.from_numpy(
                numpy_generator(recipe.seed, f"{stream}/order", epoch, number).permutation(
                    len(data)
                )
            )
            for number in block
        ]
    )
    batches = torch.split(orders, recipe.batch_size, dim=1)
    augmentation = None
    if recipe.augmentation is not None:
        augmentation = _draws(recipe, stream, epoch, block, len(batches), len(data), device)
    losses = []
    for step, indices in enumerate(batches):
        images, labels = data.batch(indices)
        if augmentation is not None:
            operations, uniforms = augmentation
            start = step * recipe.batch_size
            height, width = images.shape[-2:]
            drawn = augmentation_parameters(
                operations[:, step],
                uniforms[:, start : start + indices.shape[1]],
                (height, width),
            )
            images = augment(images, drawn)
        gradient, loss = gradients(vectors, images, labels)
        vectors = vectors - recipe.lr * gradient
        losses.append(loss)
    return vectors, torch.stack(losses).mean()


def _draws(
    recipe: ExpertRecipe,
    stream: str,
    epoch: int,
    block: Sequence[int],
    steps: int,
    count: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Operations (E, steps) and numbers for every image (E, count, 3) of an epoch."""
    assert recipe.augmentation is not None
    allowed = torch.tensor(strategy_operations(recipe.augmentation), device=device)
    operations, uniforms = [], []
    for number in block:
        generator = torch_generator(device, recipe.seed, f"{stream}/augmentation", epoch, number)
        choice = torch.randint(len(allowed), (steps,), generator=generator, device=device)
        operations.append(allowed[choice])
        uniforms.append(torch.rand(count, 3, generator=generator, device=device))
    return torch.stack(operations), torch.stack(uniforms)


class _Gradients:
    """Gradient of each expert on its own batch.

    Args:
        network: of all experts.
        precision: of the forward pass, whatever the Trainer's is: experts must be the same whoever
            trains them.
        compiled: compile it, where that is possible.
    """

    def __init__(self, network: FlatNetwork, precision: Precision, compiled: bool) -> None:
        self._network = network
        self._half = precision == "bfloat16"
        self._compiled: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        if compiled:
            self._compiled = torch.compile(self._batched, dynamic=False)

    def __call__(self, vectors: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(E, P), (E, N, C, H, W), (E, N) -> (E, P) and the mean loss."""
        with torch.autocast(vectors.device.type, torch.bfloat16, enabled=self._half):
            if self._compiled is not None:
                try:
                    return self._compiled(vectors, images, labels)
                # Whatever a compiler or its absence raises; what is wrong with the data or the
                # network is raised again below.
                except Exception as error:
                    reason = str(error).strip().partition("\n")[0]
                    rank_zero_warn(f"Experts are trained without compilation: {reason}")
                    self._compiled = None
            if len(vectors) > 1:
                return self._batched(vectors, images, labels)
            vector = vectors[0].detach().requires_grad_()
            with torch.enable_grad():
                value = self._loss(vector, images[0], labels[0])
                (gradient,) = torch.autograd.grad(value, vector)
            return gradient.unsqueeze(0), value.detach()

    def _batched(self, vectors: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        gradient = grad_and_value(self._loss)
        if len(vectors) == 1:
            # Batched convolutions are grouped convolutions, which are slow for one group too.
            single, value = gradient(vectors[0], images[0], labels[0])
            return single.unsqueeze(0), value
        gradients, values = vmap(gradient, randomness="different")(vectors, images, labels)
        return gradients, values.mean()

    def _loss(self, vector: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return self._network.loss(self._network.split(vector), images, labels)
