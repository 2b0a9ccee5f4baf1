"""What the plain loops are fed: networks and real images, as the published scripts feed theirs.

Draws come from the package's keys, so that both sides see the same; everything else is a loop over
groups, with one gather, one normalisation and one draw in each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.cases import SEED, Case
from benchmarks.data import random_images
from dam_lightning.backbones.initialisation import FreshWeights
from dam_lightning.randomness import numpy_generator, torch_generator
from tests.reference.convnet import ConvNet

__all__ = ["RealGroups", "fresh_network", "normalised"]


def fresh_network(
    case: Case,
    device: torch.device,
    stream: str,
    step: int = 0,
    group: int = 0,
    num_outputs: int | None = None,
) -> ConvNet:
    """A network; the key gives it the weights that the package's has.

    Args:
        case: the sizes.
        device: where it is made.
        stream: what it is for; with ``step`` and ``group`` its key.
        step: of the optimisation.
        group: its number.
        num_outputs: None: as many as there are classes.
    """
    # What the constructors of layers draw is not drawn, or there would be twice as many draws.
    with torch.device("meta"):
        network = ConvNet(
            3,
            num_outputs or case.num_classes,
            case.width,
            case.depth,
            (case.image_size, case.image_size),
        )
    network.to_empty(device=device)
    FreshWeights(network).draw(torch_generator(device, SEED, stream, step, group))
    return network


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, C, H, W) uint8 as float32, normalised channel by channel."""
    own_mean, own_std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (mean, std))
    return (images.float() / 255 - own_mean) / own_std


class RealGroups:
    """Real images by class and, with DAM, by pseudo-domain.

    Args:
        case: the sizes.
        device: where the images are.
        dam: with DAM or without.
    """

    def __init__(self, case: Case, device: torch.device, dam: bool) -> None:
        self._device = device
        self._batch_real = case.batch_real
        self._data = random_images(case, device, domains=dam)
        self._members = {"class": _members(self._data.train.labels, case.num_classes), "domain": []}
        if dam:
            assert self._data.pseudo_domains is not None
            self._members["domain"] = _members(self._data.pseudo_domains, case.num_domains)

    def count(self, branch: str) -> int:
        """Groups of a branch; none of pseudo-domains without DAM."""
        return len(self._members[branch])

    def images(self, branch: str, step: int) -> list[Tensor]:
        """Normalised real images of each group, drawn for a step."""
        batches = []
        for group, members in enumerate(self._members[branch]):
            generator = numpy_generator(SEED, f"real/{branch}", step, group)
            size = min(self._batch_real, len(members))
            chosen = members[
                torch.from_numpy(generator.choice(len(members), size, replace=False))
            ].to(self._device)
            images = self._data.train.images[chosen]
            batches.append(normalised(images, self._data.mean, self._data.std))
        return batches


def _members(labels: Tensor, count: int) -> list[Tensor]:
    """Numbers of the images of each group, on the CPU."""
    return [(labels == group).nonzero().flatten() for group in range(count)]
