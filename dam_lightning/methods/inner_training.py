"""Training of a network on a few images, inside a condensation step, without a data loader."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dam_lightning.functional import augment, augmentation_parameters
from dam_lightning.methods.flat_network import FlatNetwork
from dam_lightning.randomness import numpy_generator

__all__ = ["InnerTraining"]


class InnerTraining:
    """Epochs of SGD without momentum, as `train` runs them.

    Args:
        epochs: passes over all images.
        lr: step size.
        batch_size: images in a step; all of them, reshuffled each epoch.
        operations: DSA strategy as `dam_lightning.functional.strategy_operations` gives it, one
            operation for each batch, parameters of its own for each image; empty: no augmentation.
        seed: key of all draws.
    """

    def __init__(
        self, epochs: int, lr: float, batch_size: int, operations: tuple[int, ...], seed: int
    ) -> None:
        self.epochs = epochs
        self._lr = lr
        self._batch_size = batch_size
        self._operations = operations
        self._seed = seed

    def train(
        self,
        network: FlatNetwork,
        vector: Tensor,
        images: Tensor,
        labels: Tensor,
        stream: str,
        step: int,
    ) -> Tensor:
        """Train.

        Args:
            network: in the mode it is to be trained in; buffers of normalisations are updated.
            vector: parameters to begin with, (P,).
            images: (N, C, H, W), normalised.
            labels: (N,) int64.
            stream: what the draws are for; with ``step`` their key.
            step: of the optimisation.

        Returns:
            The trained parameters, (P,).
        """
        parameters = [p.detach().clone().requires_grad_() for p in network.split(vector)]
        for epoch in range(self.epochs):
            generator = numpy_generator(self._seed, stream, step, epoch)
            order = torch.from_numpy(generator.permutation(len(images)))
            for chosen in torch.split(order, self._batch_size):
                batch = images[chosen.to(images.device, non_blocking=True)]
                if self._operations:
                    operation = torch.tensor([int(generator.choice(self._operations))])
                    uniforms = torch.from_numpy(generator.random((1, len(chosen), 3)))
                    height, width = batch.shape[-2:]
                    drawn = augmentation_parameters(operation, uniforms, (height, width))
                    drawn = drawn.to(batch, non_blocking=True)
                    batch = augment(batch.unsqueeze(0), drawn).squeeze(0)
                loss = F.cross_entropy(
                    network.scores(parameters, batch),
                    labels[chosen.to(labels.device, non_blocking=True)],
                )
                gradients = torch.autograd.grad(loss, parameters)
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter.sub_(gradient, alpha=self._lr)
                # Autocast may keep casts of the parameters, which know of no update in place.
                torch.clear_autocast_cache()
        return torch.cat([parameter.detach().flatten() for parameter in parameters])
