"""Real images by group: which images of which group take part in which step.

A grouping (by class, or by pseudo-domain) is a :class:`GroupIndex`. Its draws are a function of the
seed, the step and the group, so that a resumed run and several processes draw what one unbroken run
draws (see :mod:`dam_lightning.randomness`).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dam_lightning.data.normalisation import Normalisation
from dam_lightning.data.resident import Split
from dam_lightning.functional.host import to_device
from dam_lightning.randomness import numpy_generator

__all__ = ["GroupIndex", "GroupedBatch", "GroupedLoader", "Groups", "TestLoader"]


class Groups:
    """Real images of G groups, B of each, gathered when asked for.

    Args:
        split: where the images are.
        indices: (G, B) int64 on the CPU, image numbers within ``split``.
        counts: (G,) int64 on the CPU, how many leading entries of each row are valid.
        normalisation: of the images, for the device that they are wanted on.
    """

    __slots__ = ("_device_indices", "_split", "counts", "indices", "normalisation")

    def __init__(
        self, split: Split, indices: Tensor, counts: Tensor, normalisation: Normalisation
    ) -> None:
        self._split = split
        self.normalisation = normalisation
        """What `images` does to `pixels`."""
        self.indices = indices
        """(G, B) int64 on the CPU. Where a group has fewer than B images, all of them are listed
        and the rest of its row repeats one of them."""
        self.counts = counts
        """(G,) int64 on the CPU: the valid leading entries of each row of ``indices``."""
        self._device_indices = to_device(indices, normalisation.device)

    def images(self, rows: Tensor | Sequence[int]) -> Tensor:
        """Gather and normalise the images of some groups, and of no others.

        The host does not wait for the device as long as ``rows`` are on the host.

        Args:
            rows: R group numbers.

        Returns:
            (R, B, C, H, W) float32, normalised.

        Raises:
            IndexError: there is no such group.
        """
        return self.normalisation(self.pixels(rows))

    def pixels(self, rows: Tensor | Sequence[int]) -> Tensor:
        """The same before normalisation: (R, B, C, H, W) uint8, on the device."""
        # Images that did not fit on the device are gathered on the host, with the host's indices.
        on_device = self._split.images.device == self.normalisation.device
        indices = _take_rows(self._device_indices if on_device else self.indices, rows)
        return to_device(self._split.gather(indices), self.normalisation.device)


def _take_rows(table: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
    """``table[rows]``, without a copy from the host (which would make it wait) for host rows."""
    if isinstance(rows, Tensor):
        if rows.device == table.device:
            return table[rows]
        rows = rows.tolist()
    wrong = [row for row in rows if not 0 <= row < len(table)]
    if wrong:
        raise IndexError(f"groups {wrong} of {len(table)} groups")
    if isinstance(rows, range) and rows.step == 1:
        return table[rows.start : max(rows.start, rows.stop)]
    return torch.stack([table[row] for row in rows]) if rows else table[:0]


class GroupedBatch:
    """What one condensation step sees of the real data."""

    __slots__ = ("classes", "domains", "step")

    def __init__(self, step: int, classes: Groups, domains: Groups | None) -> None:
        self.step = step
        """The global step that the draws belong to."""
        self.classes = classes
        """One group per class, in the order of the class names."""
        self.domains = domains
        """One group per pseudo-domain, or None where none were asked for."""


class GroupIndex:
    """Image numbers sorted by group.

    Args:
        labels: (N,) int64 on the CPU, the group of each image, in 0..G-1.
        names: of the G groups, for error messages.

    Raises:
        ValueError: a group has no images, or a label is not the number of a group.
    """

    def __init__(self, labels: Tensor, names: Sequence[str]) -> None:
        groups = labels.numpy()
        if len(groups) and (groups.min() < 0 or groups.max() >= len(names)):
            raise ValueError(
                f"labels run from {groups.min()} to {groups.max()}, but there are "
                f"{len(names)} groups"
            )
        self.sizes: list[int] = np.bincount(groups, minlength=len(names)).tolist()
        empty = [name for name, size in zip(names, self.sizes, strict=True) if size == 0]
        if empty:
            raise ValueError(
                f"no training images in: {', '.join(empty)}. Add some, or leave these groups out"
            )
        order = np.argsort(groups, kind="stable")
        self._members = np.split(order, np.cumsum(self.sizes)[:-1])

    def draw(self, batch_size: int, seed: int, stream: str, step: int) -> tuple[Tensor, Tensor]:
        """Draw images of every group without replacement.

        The draw for a group depends on the seed, the stream, the step and the group's number only.
        Its cost does not grow with the dataset.

        Args:
            batch_size: images wanted of each group.
            seed: the run's seed.
            stream: name of the random stream.
            step: the global step.

        Returns:
            Indices (G, B) int64 and counts (G,) int64, both on the CPU, as in :class:`Groups`. B is
            ``batch_size``, or the size of the largest group where every group is smaller.
        """
        width = min(batch_size, max(self.sizes))
        indices = np.empty((len(self.sizes), width), dtype=np.int64)
        counts = np.minimum(self.sizes, width)
        for group, (members, count) in enumerate(zip(self._members, counts, strict=True)):
            generator = numpy_generator(seed, stream, step, group)
            indices[group, :count] = members[
                generator.choice(len(members), size=count, replace=False)
            ]
            indices[group, count:] = indices[group, 0]
        return torch.from_numpy(indices), torch.from_numpy(counts)


class GroupedLoader:
    """The batches of one epoch, drawn as they are asked for.

    It has a length, and must: Lightning reads one batch ahead of loaders without one, which would
    shift a resumed run by a step.

    Args:
        batch: makes the batch of a global step.
        steps_per_epoch: number of batches in one iteration.
        global_step: the step to begin an iteration with, or None to go on counting from where the
            last iteration stopped.
    """

    def __init__(
        self,
        batch: Callable[[int], GroupedBatch],
        steps_per_epoch: int,
        global_step: Callable[[], int | None],
    ) -> None:
        self._batch = batch
        self._steps_per_epoch = steps_per_epoch
        self._global_step = global_step
        self._next = 0

    def __len__(self) -> int:
        return self._steps_per_epoch

    def __iter__(self) -> Iterator[GroupedBatch]:
        # Asked at the start of every epoch. Resuming in mid-epoch, Lightning iterates anew and
        # takes only the batches that are left, so the first is that of the restored global step.
        step = self._global_step()
        self._next = self._next if step is None else step
        for _ in range(self._steps_per_epoch):
            self._next += 1
            yield self._batch(self._next - 1)

    def state_dict(self) -> dict[str, int]:
        """The step after the last one. Having this tells Lightning that the loader can resume."""
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after the last step of a saved loader; a Trainer's global step goes before it."""
        self._next = state_dict["next"]


class TestLoader:
    """A split in order, for testing or validation.

    Batches are ``(images, labels, domains)`` on the device.

    With several ranks each takes every ``world_size``-th image, so that the shares are disjoint and
    complete; they may differ in length by one image.

    Args:
        split: the images.
        batch_size: images in a batch; the last may be smaller.
        normalisation: of the images, for the device that the batches are wanted on.
        rank: this process.
        world_size: number of processes.
    """

    __test__ = False  # the name is no pytest class

    def __init__(
        self,
        split: Split,
        batch_size: int,
        normalisation: Normalisation,
        rank: int,
        world_size: int,
    ) -> None:
        self._split = split
        self._normalisation = normalisation
        share = torch.arange(len(split))[rank::world_size]
        self._batches = torch.split(share, batch_size) if len(share) else ()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of (B, C, H, W) normalised float32, (B,) int64 and (B,) int64."""
        device = self._normalisation.device
        for indices in self._batches:
            yield (
                self._normalisation(self._split.gather(indices)),
                to_device(self._split.labels[indices], device),
                to_device(self._split.domains[indices], device),
            )
