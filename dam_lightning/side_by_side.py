"""Networks of one architecture side by side: gradients on batches of their own, and answers.

On an accelerator, which many small steps leave idle, several networks are one batch of networks. On
a CPU, which batched convolutions do not suit, they are taken one after another, and a batch in
pieces that stay in its caches.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from dam_lightning.backbones import build_backbone
from dam_lightning.backbones.build import backbone_identity
from dam_lightning.compilation import Compiled
from dam_lightning.flat_network import ALIKE, FlatNetwork, probe_images
from dam_lightning.functional import augment, augmentation_parameters
from dam_lightning.pieces import images_at_once

__all__ = ["Draws", "Networks", "augmented", "image_budget", "networks_of", "work"]


def image_budget(device: torch.device) -> int:
    """Images whose activations may be in memory together while networks are trained.

    One network at a time on a CPU, and 32 of the published batch size elsewhere, which keep an
    accelerator busy.
    """
    return 256 if device.type == "cpu" else 8192


def work(device: torch.device, image_shape: Sequence[int], images: int, steps: int) -> int:
    """How much compiling can save, for `dam_lightning.compilation.worth_compiling`.

    On an accelerator a launch of everything at every step; on a CPU a part of the time of every
    piece that fills its caches, so that small networks' training on few images is no reason.

    Args:
        device: where it is computed.
        image_shape: (C, H, W).
        images: that pass through networks in all.
        steps: in which they do so on an accelerator, where networks share them.
    """
    if device.type != "cpu":
        return steps
    height, width = image_shape[-2:]
    return images // images_at_once(device, height, width, max(images, 1))


class Draws(NamedTuple):
    """What to do to the images of E networks.

    Attributes:
        operations: (E,) index into `dam_lightning.functional.OPERATIONS`, one for a network's
            batch.
        uniforms: (E, N, 3) numbers in [0, 1) for each image.
    """

    operations: Tensor
    uniforms: Tensor


def augmented(images: Tensor, operations: Tensor, uniforms: Tensor) -> Tensor:
    """Images (..., N, C, H, W) with one operation (...) for a batch and numbers (..., N, 3)."""
    height, width = images.shape[-2:]
    return augment(images, augmentation_parameters(operations, uniforms, (height, width)))


class Networks:
    """Gradients and answers of networks that differ in nothing but their parameters.

    Args:
        make: makes one of them, in training mode; its parameters serve as a probe only.
        image_shape: (C, H, W).
        device: where it is.

    Attributes:
        is_plain: whether a gradient depends on parameters and single images, and on nothing else.
            Not so with batch normalisation, draws in the forward pass, other state in buffers, or
            parameters that are not to be trained: `gradients` are wrong then.
        flat: the network as a function of a vector.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        image_shape: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self._image_shape = image_shape
        self._device = device
        module = make()
        self._tested = make().requires_grad_(False).eval()
        self._names = [name for name, _ in _state(self._tested)]
        # Before the parameters are frozen.
        trains_all = _trains_all(module)
        self.flat = FlatNetwork(module)
        self.is_plain = trains_all and self.flat.is_plain(image_shape, device)
        self._gradient = Compiled(self._piece_gradient, "the training")
        self._answer = Compiled(self._piece_answers, "the test")

    # Gradients.

    def together(self, batch_size: int, max_images: int | None) -> int:
        """Networks that are best trained at once.

        Args:
            batch_size: images in a step of one.
            max_images: images whose activations may be in memory together; None: as many as
                `image_budget` says, and one network on a CPU.
        """
        if max_images is None and self._device.type == "cpu":
            return 1
        count = max(1, (max_images or image_budget(self._device)) // batch_size)
        return count if count > 1 and self.can_be_batched else 1

    def piece(self, count: int, batch_size: int, max_images: int | None) -> int:
        """Images of each of ``count`` networks in one pass; other arguments as of `together`."""
        if not self.is_plain:
            return batch_size
        limit = max(1, (max_images or image_budget(self._device)) // count)
        height, width = self._image_shape[1:]
        most = images_at_once(self._device, height, width, limit)
        # Pieces of one size, so that a batch is compiled once.
        return math.ceil(batch_size / math.ceil(batch_size / most))

    @cached_property
    def can_be_batched(self) -> bool:
        """Whether gradients of several can be computed at once, which not all modules bear."""
        if not self.is_plain:
            return False
        with torch.inference_mode(False), torch.autocast(self._device.type, enabled=False):
            return self._batched_as_alone()

    def _batched_as_alone(self) -> bool:
        vector = self.flat.initial()
        inputs = (
            torch.stack([vector, 0.9 * vector]),
            probe_images(4, self._image_shape, self._device, vector.dtype).view(
                2, 2, *self._image_shape
            ),
            torch.zeros(2, 2, dtype=torch.int64, device=self._device),
            vector.new_full((2,), 0.5),
        )
        try:
            batched, _ = self._piece_gradient(*inputs)
        # Whatever a module does that torch.func.vmap does not bear.
        except Exception:
            return False
        vectors, images, labels, weights = inputs
        alone = torch.stack(
            [
                self._piece_gradient(*each, weights)[0]
                for each in zip(vectors, images, labels, strict=True)
            ]
        )
        return bool((batched - alone).norm() <= ALIKE * alone.norm())

    def gradients(
        self,
        vectors: Tensor,
        images: Tensor,
        labels: Tensor,
        draws: Draws | None,
        *,
        piece: int,
        compile: bool,
    ) -> tuple[Tensor, Tensor]:
        """Gradient of each network's mean cross entropy on its own batch.

        Args:
            vectors: (E, P) parameters, in the order of ``module.parameters()``.
            images: (E, N, C, H, W).
            labels: (E, N) int64.
            draws: how the images are augmented; None: not.
            piece: images of each network in one pass.
            compile: by a compiled function.

        Returns:
            (E, P), and (E,) losses.
        """
        count = labels.shape[1]
        piece = min(piece, count)
        inputs = [images, labels] if draws is None else [images, labels, draws.uniforms]
        common = [vectors] if draws is None else [vectors, draws.operations]
        if len(vectors) == 1:
            # Batched convolutions are grouped convolutions, which are slow for one group too.
            inputs, common = [t[0] for t in inputs], [t[0] for t in common]
        dim = inputs[1].ndim - 1
        weights = vectors.new_full((count,), 1 / count)
        function = self._gradient if compile else self._piece_gradient
        gradient: Tensor | None = None
        for start in range(0, count, piece):
            if start + piece <= count:
                part = [t.narrow(dim, start, piece).contiguous() for t in inputs]
                own = weights.narrow(0, start, piece)
            else:
                # Filled up by an image that does not count, and so is surely finite.
                rows = torch.arange(start, start + piece, device=labels.device)
                part = [t.index_select(dim, rows.clamp(max=count - 1)) for t in inputs]
                own = (rows < count).to(weights.dtype) / count
            found, value = function(common[0], *part[:2], own, *common[1:], *part[2:])
            if gradient is None:
                gradient, loss = found, value
            else:
                gradient, loss = gradient.add_(found), loss + value
        assert gradient is not None
        return gradient.view(vectors.shape), loss.view(-1)

    def _piece_gradient(
        self, vectors: Tensor, images: Tensor, labels: Tensor, weights: Tensor, *draws: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of several networks, or of one, whose tensors lack the first dimension."""
        if draws:
            images = augmented(images, *draws)
        gradient = grad_and_value(self._loss)
        if vectors.ndim == 2:
            found, value = vmap(gradient, in_dims=(0, 0, 0, None))(vectors, images, labels, weights)
        elif torch.compiler.is_compiling():
            # Norms and poolings are compiled into faster code where the channels lie together.
            images = images.contiguous(memory_format=torch.channels_last)
            found, value = gradient(vectors, images, labels, weights)
        else:
            # Faster than torch.func by a sixth.
            leaves = [leaf.detach().requires_grad_() for leaf in self.flat.split(vectors)]
            with torch.enable_grad():
                value = self.flat.loss(leaves, images, labels, weights)
            # Zeros for what the scores do not depend on.
            single = torch.autograd.grad(value, leaves, materialize_grads=True)
            found, value = torch.cat([part.flatten() for part in single]), value.detach()
        return found, value

    def _loss(self, vector: Tensor, images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return self.flat.loss(self.flat.split(vector), images, labels, weights)

    # Answers.

    def states(self, modules: Sequence[nn.Module], together: int) -> list[list[Tensor]]:
        """Parameters and buffers of trained networks, ``together`` of them stacked at a time."""
        every = []
        for module in modules:
            named = dict(_state(module))
            every.append([named[name].detach() for name in self._names])
        if together == 1:
            return every
        return [
            [torch.stack(same) for same in zip(*every[start : start + together], strict=True)]
            for start in range(0, len(every), together)
        ]

    def answers(self, state: list[Tensor], images: Tensor, *, compile: bool) -> Tensor:
        """The class that each of the networks takes an image for.

        Args:
            state: one of `states`, of E networks.
            images: (N, C, H, W).
            compile: by a compiled function.

        Returns:
            (E, N) int64.
        """
        function = self._answer if compile else self._piece_answers
        return function(state, images).view(-1, len(images))

    def _piece_answers(self, state: list[Tensor], images: Tensor) -> Tensor:
        """Of several networks, or of one, whose tensors lack the first dimension."""
        if state[0].ndim == _state(self._tested)[0][1].ndim:
            return self._one_answers(state, images)
        answers: Tensor = vmap(self._one_answers, in_dims=(0, None))(state, images)
        return answers

    def _one_answers(self, state: list[Tensor], images: Tensor) -> Tensor:
        named = dict(zip(self._names, state, strict=True))
        scores: Tensor = functional_call(self._tested, named, (images,))
        return scores.argmax(dim=1)


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _trains_all(module: nn.Module) -> bool:
    """Whether all parameters are to be trained, and can be one vector."""
    parameters = list(module.parameters())
    kinds = {parameter.dtype for parameter in parameters}
    return (
        len(kinds) == 1
        and kinds.pop().is_floating_point
        and all(parameter.requires_grad for parameter in parameters)
    )


_latest: tuple[object, Networks] | None = None


def networks_of(
    backbone: str,
    options: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    num_outputs: int,
    device: torch.device,
) -> Networks:
    """What computes networks of a backbone.

    Asked for the same again, it gives the same again, so that a process compiles for an
    architecture once. Only the latest is kept, for its memory on an accelerator.

    Args:
        backbone: as `dam_lightning.backbones.build_backbone` takes it.
        options: the backbone's.
        image_shape: (C, H, W).
        num_outputs: of the networks.
        device: where they are computed.

    Raises:
        ValueError: if there is no such network or it does not take these images or options.
    """
    global _latest
    dtype = torch.get_default_dtype()
    key = (
        backbone_identity(backbone),
        dict(options),
        tuple(image_shape),
        num_outputs,
        device,
        dtype,
    )
    if _latest is None or _latest[0] != key:
        _latest = None

        def make() -> nn.Module:
            return build_backbone(backbone, image_shape, num_outputs, options, device=device)

        # In inference mode its tensors could not be used outside.
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            _latest = (key, Networks(make, image_shape, device))
    return _latest[1]
