"""DM: distribution matching, with networks that are never trained."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from dam_lightning.backbones import Backbone
from dam_lightning.backbones.build import has_fresh_weights
from dam_lightning.backbones.initialisation import FreshWeights
from dam_lightning.compilation import Compiled
from dam_lightning.functional import distribution_matching_loss
from dam_lightning.methods.base import Condenser
from dam_lightning.methods.gradients import recomputed
from dam_lightning.precision import Precision, fast_precision
from dam_lightning.randomness import torch_generator

__all__ = ["DM"]


class DM(Condenser):
    """Distribution matching: mean embeddings of real and synthetic images under random networks.

    Zhao and Bilen, Dataset Condensation with Distribution Matching (WACV 2023). Each step draws one
    network and uses it for both losses; appendix A of the DAM paper explains why DM needs no
    second.

    Arguments and attributes are those of `Condenser`; the defaults are the paper's.

    Raises:
        ValueError: in addition, if the backbone has batch normalisation, whose statistics would tie
            the groups of a step together.
    """

    def setup(self, stage: str) -> None:
        """In addition, try the backbone and its options before anything is begun."""
        super().setup(stage)
        if stage == "fit":
            self._checked(self.fresh_network(0))

    def forget_compiled(self) -> None:
        """In addition, the embedding and its network."""
        super().forget_compiled()
        for name in ("_network", "_features", "_weights"):
            self.__dict__.pop(name, None)

    def network_state(self, step: int) -> Backbone:
        """A fresh random network, frozen."""
        if not self.compiles:
            return self._checked(self.fresh_network(step))
        # The same module at every step, because it was compiled with its parameters' places.
        if has_fresh_weights(self.backbone):
            generator = torch_generator(self.device, self.seed, "network", step)
            self._weights.draw(generator)
        else:
            fresh = self.fresh_network(step)
            with torch.no_grad():
                for mine, new in zip(_state(self._network), _state(fresh), strict=True):
                    mine.copy_(new)
        return self._network

    def _checked(self, network: Backbone) -> Backbone:
        if any(isinstance(module, _BatchNorm) for module in network.modules()):
            raise ValueError(
                f"DM cannot condense with {self.backbone} and batch normalisation: embeddings "
                "would depend on which groups share a forward pass; use norm: instancenorm, or a "
                "backbone without batch normalisation"
            )
        return network.requires_grad_(False)

    @cached_property
    def _network(self) -> Backbone:
        # In the instance's __dict__, and so no submodule.
        return self._checked(self.fresh_network(0))

    @cached_property
    def _weights(self) -> FreshWeights:
        return FreshWeights(self._network)

    @cached_property
    def _features(self) -> Compiled[Tensor]:
        return Compiled(self._network.features, "the embedding")

    @property
    def _default_precision(self) -> Precision:
        # Mean embeddings under random networks do not suffer; see benchmarks/README.md.
        return fast_precision(self.device)

    def matching_loss(
        self, state: Backbone, real: Tensor, counts: Tensor, synthetic: Tensor, labels: Tensor
    ) -> Tensor:
        """Squared distance of the mean embeddings, summed over the groups."""
        with torch.no_grad():
            real_features = self._embed(state, real)
        return distribution_matching_loss(real_features, self._embed(state, synthetic), counts)

    def _embed(self, network: Backbone, images: Tensor) -> Tensor:
        """(G, B, C, H, W) -> (G, B, F), with the activations of at most ``max_images`` kept."""
        features: Callable[[Tensor], Tensor] = network.features
        if self.compiles:
            features = self._features
        pieces = torch.split(images.flatten(0, 1), self.images_at_once)
        if torch.is_grad_enabled() and images.shape[:2].numel() > self.max_images:
            embedded = [recomputed(features, piece) for piece in pieces]
        else:
            embedded = [features(piece) for piece in pieces]
        # Means and distances are taken in the images' precision, also under autocast.
        return torch.cat(embedded).to(images.dtype).view(*images.shape[:2], -1)


def _state(network: Backbone) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
