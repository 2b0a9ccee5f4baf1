"""A network as a function of one vector that holds all its parameters."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["ALIKE", "NOT_PLAIN", "FlatNetwork", "probe_images"]

NOT_PLAIN = (
    "Not compiled: the training of networks that depend on more than parameters and single images, "
    "as with batch normalisation or dropout"
)
"""For users who wonder, where not `FlatNetwork.is_plain`."""

ALIKE = 1e-2
"""Largest difference of what is computed in two ways, as a share of it; an error of principle is
larger, and rounding, in TF32 too, is smaller."""


def probe_images(
    count: int, image_shape: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Some images, all different, and of different brightness: (count, C, H, W)."""
    numbers = torch.arange(count * math.prod(image_shape), device=device)
    images = (numbers * 0.7).sin().view(count, *image_shape)
    brightness = torch.arange(count, device=device).view(-1, 1, 1, 1)
    return (images + brightness).to(dtype)


class FlatNetwork:
    """Class scores and gradients of a network whose parameters are given as a vector.

    The vector has the parameters in the order of ``module.parameters()``, flattened. Gradients are
    taken by ``torch.func``, so that they can be differentiated once more, batched and compiled.

    Not an ``nn.Module``: a network inside a step must not become part of the module that takes the
    step.

    Args:
        module: the network; its buffers are used and updated as they are, its parameters are only
            a beginning.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module.requires_grad_(False)
        parameters = dict(module.named_parameters())
        self._names = list(parameters)
        self._shapes = [parameter.shape for parameter in parameters.values()]
        self._sizes = [parameter.numel() for parameter in parameters.values()]
        self._dtype = next(iter(parameters.values())).dtype

    @property
    def size(self) -> int:
        """Number of parameters, P."""
        return sum(self._sizes)

    @property
    def batched(self) -> bool:
        """Whether `gradients` computes groups of images as a batch, or one after another.

        PyTorch (2.15) gets second derivatives of some norms' gradients wrong there: those of layer
        and instance norm, and of batch norm with the statistics of the batch.
        """
        if not getattr(self.module, "batched_second_derivatives", False):
            return False
        return not any(module.training for module in self.batch_norms)

    @property
    def batch_norms(self) -> list[nn.Module]:
        """Modules with batch normalisation."""
        return [module for module in self.module.modules() if isinstance(module, _BatchNorm)]

    def is_random(self, image_shape: tuple[int, int, int], device: torch.device) -> bool:
        """Whether a forward pass in training draws anything, such as what to drop.

        Args:
            image_shape: (C, H, W).
            device: where the network is.
        """
        cuda = device.type == "cuda"
        with torch.random.fork_rng([device] if cuda else []), torch.no_grad():
            state = partial(torch.cuda.get_rng_state, device) if cuda else torch.get_rng_state
            before = state()
            images = torch.zeros(2, *image_shape, device=device, dtype=self._dtype)
            functional_call(self.module, self._buffers(), (images,))
            return not torch.equal(before, state())

    def _buffers(self) -> dict[str, Tensor]:
        """Copies, for forward passes that are to leave no trace."""
        return {name: buffer.clone() for name, buffer in self.module.named_buffers()}

    def is_plain(self, image_shape: tuple[int, int, int], device: torch.device) -> bool:
        """Whether in training the scores of an image depend on parameters and this image alone.

        Not so with batch normalisation or dropout, or with other state in buffers. Otherwise images
        may be computed in any pieces, and by a compiled function.

        Args:
            image_shape: (C, H, W).
            device: where the network is.
        """
        if self.batch_norms or self.is_random(image_shape, device):
            return False
        images = probe_images(3, image_shape, device, self._dtype)
        state = self._buffers()
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            three = functional_call(self.module, state, (images,))
            two = functional_call(self.module, state, (images[:2],))
        unchanged = all(torch.equal(state[name], own) for name, own in self.module.named_buffers())
        return unchanged and bool((three[:2] - two).norm() <= ALIKE * two.norm())

    def adopt(self, module: nn.Module) -> Tensor:
        """Take the buffers of a fresh module that fits; its parameters as a vector, (P,)."""
        with torch.no_grad():
            for ours, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
                ours.copy_(theirs)
            return torch.cat([parameter.flatten() for parameter in module.parameters()])

    def initial(self) -> Tensor:
        """The parameters that the module has of its own, (P,)."""
        return torch.cat([parameter.flatten() for parameter in self.module.parameters()])

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector (P,) as the parameters it stands for."""
        pieces = torch.split(vector, self._sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def parts(self, vector: Tensor, compiled: bool) -> list[Tensor]:
        """Parameters (P,) divided into tensors as is fastest, for many steps with them.

        On accelerators, where every tensor costs a launch, that is one vector. A CPU takes them one
        by one; compiled convolutions would reorder their weights there, each time they are called.

        Args:
            vector: the parameters.
            compiled: whether compiled functions take them.
        """
        if vector.device.type != "cpu":
            return [vector]
        parts = self.split(vector)
        if not compiled:
            return parts
        return [part.clone(memory_format=_layout(part)) for part in parts]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The parameters that `parts` divided, (P,)."""
        return torch.cat([part.flatten() for part in parts])

    def shaped(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Parameters as from `split`, given so or as the vector alone, in a list."""
        if len(parameters) == 1 and parameters[0].shape == (self.size,):
            return self.split(parameters[0])
        return list(parameters)

    def scores(self, parameters: Sequence[Tensor], images: Tensor) -> Tensor:
        """Class scores: parameters as `shaped` takes them, (N, C, H, W) -> (N, outputs)."""
        named = dict(zip(self._names, self.shaped(parameters), strict=True))
        scores: Tensor = functional_call(self.module, named, (images,))
        return scores

    def loss(
        self,
        parameters: Sequence[Tensor],
        images: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Cross entropy.

        Args:
            parameters: as `shaped` takes them.
            images: (N, C, H, W).
            labels: (N,) int64.
            weights: (N,) of each image, which add up to 1; None: the mean.

        Returns:
            A scalar.
        """
        scores = self.scores(parameters, images)
        if weights is None:
            return F.cross_entropy(scores, labels)
        return (F.cross_entropy(scores, labels, reduction="none") * weights).sum()

    def gradients(
        self, parameters: Sequence[Tensor], images: Tensor, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients of `loss` with respect to the parameters, for several groups of images.

        Args:
            parameters: as `shaped` takes them.
            images: (G, N, C, H, W).
            labels: (G, N) int64.
            weights: (G, N).

        Returns:
            Of each tensor in ``parameters`` (G, *shape).
        """
        gradient = grad(self.loss)
        if len(images) == 1:
            # Batched convolutions are grouped convolutions, which are slow for one group too.
            single = gradient(list(parameters), images[0], labels[0], weights[0])
            return tuple(tensor.unsqueeze(0) for tensor in single)
        if not self.batched:
            one_by_one = [
                gradient(list(parameters), *group)
                for group in zip(images, labels, weights, strict=True)
            ]
            return tuple(map(torch.stack, zip(*one_by_one, strict=True)))
        batched = vmap(gradient, in_dims=(None, 0, 0, 0), randomness="different")
        return tuple(batched(list(parameters), images, labels, weights))


def _layout(part: Tensor) -> torch.memory_format:
    """As compiled convolutions take their weights.

    Weights that lie so already keep their strides: others that mean the same are lost in
    computations, and what they come to would be compiled for itself.
    """
    if part.ndim != 4 or part.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last
