"""Training experts, many side by side, and keeping their trajectories."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from dam_lightning.compilation import worth_compiling
from dam_lightning.ending import end_if_asked
from dam_lightning.functional import strategy_operations
from dam_lightning.functional.host import to_device
from dam_lightning.methods.expert_recipe import ExpertData, ExpertRecipe
from dam_lightning.methods.expert_store import ExpertStore
from dam_lightning.methods.stability import DivergenceError
from dam_lightning.precision import forward_passes
from dam_lightning.randomness import numpy_generator, torch_generator
from dam_lightning.side_by_side import Draws, networks_of, work

__all__ = ["ExpertEpoch", "Gradients", "train_epoch", "train_experts"]

Gradients = Callable[[Tensor, Tensor, Tensor, Draws | None], tuple[Tensor, Tensor]]
"""Of several networks: (E, P) parameters, (E, N, C, H, W), (E, N) and draws to (E, P) and (E,)."""


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
    max_images: int | None = None,
    compile: bool | None = None,
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
            are trained side by side: the images over the batch size. None: 8192, and one expert on
            a CPU.
        compile: compile the step; None: where the training is long enough to pay for it.

    Yields:
        Every epoch of every block of experts.

    Raises:
        DivergenceError: if parameters are not finite after an epoch.
        ValueError: as of `ExpertStore.epochs`.
    """
    trained = {number: store.epochs(number) for number in numbers}
    missing = sorted((done or 0, n) for n, done in trained.items() if done is None or done < epochs)
    if not missing:
        return
    networks = networks_of(
        recipe.backbone, recipe.backbone_args, data.image_shape, data.num_outputs, data.device
    )
    together = networks.together(recipe.batch_size, max_images)
    if compile is None:
        left = sum(epochs - done for done, _ in missing)
        steps = -(-left // together) * -(-len(data) // recipe.batch_size)
        compile = worth_compiling(work(data.device, data.image_shape, left * len(data), steps))
    for _, group in groupby(missing, key=lambda pair: pair[0]):
        same = [number for _, number in group]
        for start in range(0, len(same), together):
            block = same[start : start + together]
            piece = networks.piece(len(block), recipe.batch_size, max_images)
            gradients = partial(networks.gradients, piece=piece, compile=compile)
            yield from _train_block(store, data, recipe, block, epochs, gradients)


def _train_block(
    store: ExpertStore,
    data: ExpertData,
    recipe: ExpertRecipe,
    block: Sequence[int],
    epochs: int,
    gradients: Gradients,
) -> Iterator[ExpertEpoch]:
    if store.epochs(block[0]) is None:
        fresh = [data.network(recipe, number).initial() for number in block]
        snapshots = torch.stack(fresh).cpu().unsqueeze(1)
    else:
        snapshots = torch.stack([store.parameters(number, slice(None)) for number in block])
    vectors = snapshots[:, -1].to(data.device)
    kept = [snapshots]
    for epoch in range(snapshots.shape[1], epochs + 1):
        vectors, loss = train_epoch(gradients, vectors, data, recipe, block, epoch)
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


def train_epoch(
    gradients: Gradients,
    vectors: Tensor,
    data: ExpertData,
    recipe: ExpertRecipe,
    block: Sequence[int],
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """One epoch of some experts; the host does not wait for the device.

    Args:
        gradients: as `Networks.gradients`.
        vectors: (E, P) parameters.
        data: what they learn.
        recipe: how.
        block: their numbers.
        epoch: counted from 1.

    Returns:
        (E, P) parameters, and the mean loss.
    """
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
    draws = None
    if recipe.augmentation is not None:
        steps = -(-len(data) // recipe.batch_size)
        draws = _draws(recipe, stream, epoch, block, steps, len(data), data.device)
    losses = []
    for step, (images, labels) in enumerate(data.batches(orders, recipe.batch_size)):
        end_if_asked()
        drawn = None
        if draws is not None:
            start = step * recipe.batch_size
            own = draws.uniforms[:, start : start + labels.shape[1]]
            drawn = Draws(draws.operations[:, step], own)
        # Whatever the Trainer's precision: experts must be the same whoever trains them.
        with forward_passes(data.device, recipe.precision):
            gradient, loss = gradients(vectors, images, labels, drawn)
        vectors = vectors - recipe.lr * gradient
        losses.append(loss.mean())
    return vectors, torch.stack(losses).mean()


def _draws(
    recipe: ExpertRecipe,
    stream: str,
    epoch: int,
    block: Sequence[int],
    steps: int,
    count: int,
    device: torch.device,
) -> Draws:
    """Operations (E, steps) and numbers for every image (E, count, 3) of an epoch."""
    assert recipe.augmentation is not None
    allowed = to_device(torch.tensor(strategy_operations(recipe.augmentation)), device)
    operations, uniforms = [], []
    for number in block:
        generator = torch_generator(device, recipe.seed, f"{stream}/augmentation", epoch, number)
        choice = torch.randint(len(allowed), (steps,), generator=generator, device=device)
        operations.append(allowed[choice])
        uniforms.append(torch.rand(count, 3, generator=generator, device=device))
    return Draws(torch.stack(operations), torch.stack(uniforms))
