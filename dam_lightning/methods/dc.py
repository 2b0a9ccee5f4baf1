"""DC: gradient matching along the training of networks on the condensed images."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from dam_lightning.backbones.build import has_fresh_weights
from dam_lightning.backbones.initialisation import FreshWeights
from dam_lightning.data.groups import GroupedBatch, Groups
from dam_lightning.evaluation.recipe import RecipeOptions
from dam_lightning.flat_network import FlatNetwork
from dam_lightning.functional import DSA
from dam_lightning.functional.host import host_values, to_device
from dam_lightning.methods.base import Branch, Condenser, DAMOptions
from dam_lightning.methods.gradient_matching import GradientMatching, Metric
from dam_lightning.methods.gradients import carry_gradient
from dam_lightning.methods.inner_training import InnerTraining
from dam_lightning.methods.network_gradients import NetworkGradients
from dam_lightning.pieces import images_at_once
from dam_lightning.randomness import seeded, torch_generator

__all__ = ["DC"]

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Published (outer, inner) loops by images per class (``get_loops`` of the original)."""

_STATISTICS = 16
"""Real images of each group that set the statistics of batch normalisation, as in the original."""


class _Architecture(NamedTuple):
    """What all networks of a branch have in common, so that it is compiled once.

    Attributes:
        gradients: of such a network.
        matching: by these gradients.
        weights: draws new ones; None: a fresh network has to be made.
    """

    gradients: NetworkGradients
    matching: GradientMatching
    weights: FreshWeights | None


@dataclass(frozen=True)
class _Inner:
    """A network inside the outer loop.

    Attributes:
        architecture: with its buffers.
        vector: its parameters, (P,).
    """

    architecture: _Architecture
    vector: Tensor

    @property
    def network(self) -> FlatNetwork:
        """Scores by the parameters."""
        return self.architecture.gradients.network

    @cached_property
    def parts(self) -> list[Tensor]:
        """The parameters as gradients are taken with respect to them."""
        return self.architecture.gradients.parts(self.vector)


class DC(Condenser):
    """Gradient matching: real and synthetic images that would train a network alike.

    Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching (ICLR 2021); ``main.py`` of
    VICO-UoE/DatasetCondensation. An iteration draws a network and takes ``outer_loop`` image
    updates with it, between which it is trained on the condensed images for ``inner_loop`` epochs.
    A step of the Trainer is one image update, so ``max_steps`` is iterations times ``outer_loop``.
    With an ``augmentation`` it is DSA (ICML 2021).

    With DAM, a second network matches the pseudo-domains, each of them a class of its own
    (appendix A of the DAM paper calls it a domain classifier).

    Args:
        ipc: synthetic images per class.
        dam: as in `Condenser`.
        lr_images: step size for the images.
        augmentation: None (DC), or the strategy of DSA, shared by real and synthetic images of a
            group, and used in the inner training too.
        outer_loop: image updates for each network. None: the published value for ``ipc``, which is
            there for 1, 10, 20, 30, 40 and 50.
        inner_loop: epochs on the condensed images between two updates; None: as ``outer_loop``.
        lr_network: step size of the inner training.
        batch_train: images in a step of the inner training.
        metric: distance of two gradients, see `gradient_matching_loss`.
        domain_outputs: outputs of the second network: ``"domains"``, one for each pseudo-domain, or
            ``"classes"``, the architecture of the first, whose first outputs are then used.
        domain_training: what the second network is trained on between updates: ``"synthetic"``,
            the views of the condensed images, as the first is; ``"real"``, the real images of the
            step; ``"none"``.
        recipe: as in `Condenser`, but the augmentation is that of DM's protocol unless given, since
            the paper tests all methods by it.
        **options: of `Condenser`; ``max_images`` is 512 instead of 1024 where it is not given and
            the device no CPU.

    Raises:
        ValueError: if an argument is out of its range, or there are no published loops for ``ipc``.
    """

    def __init__(
        self,
        ipc: int = 1,
        dam: DAMOptions | None = None,
        lr_images: float = 0.1,
        augmentation: str | None = None,
        outer_loop: int | None = None,
        inner_loop: int | None = None,
        lr_network: float = 0.01,
        batch_train: int = 256,
        metric: Metric = "layerwise_cosine",
        domain_outputs: Literal["domains", "classes"] = "domains",
        domain_training: Literal["synthetic", "real", "none"] = "synthetic",
        recipe: RecipeOptions | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            ipc=ipc,
            dam=dam,
            lr_images=lr_images,
            augmentation=augmentation,
            recipe={"augmentation": augmentation or DSA, **(recipe or {})},
            **options,
        )
        self.outer_loop, inner_loop = _loops(ipc, outer_loop, inner_loop)
        if not lr_network > 0:
            raise ValueError(f"lr_network must be above 0, got {lr_network}")
        if batch_train < 1:
            raise ValueError(f"batch_train must be at least 1, got {batch_train}")
        for name, value, allowed in (
            ("metric", metric, ("layerwise_cosine", "mse", "cos")),
            ("domain_outputs", domain_outputs, ("domains", "classes")),
            ("domain_training", domain_training, ("synthetic", "real", "none")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        self.metric = metric
        self.domain_outputs = domain_outputs
        self.domain_training = domain_training
        self._inner_loop = inner_loop
        self._lr_network = lr_network
        self._batch_train = batch_train
        self._networks: dict[Branch, _Inner] = {}
        self._architectures: dict[Branch, _Architecture] = {}
        # The step whose networks these are; unfinished ones are made again when they are needed.
        self._networks_step = -1
        self._saved_networks: dict[str, Any] | None = None

    # Gradients with respect to weights, and their graphs, take twice what embeddings take.
    _accelerator_budget = 512

    # The networks.

    def setup(self, stage: str) -> None:
        """In addition, try the backbone and its options before anything is begun.

        Raises:
            MisconfigurationException: in addition, if there are fewer classes than pseudo-domains
                with ``domain_outputs: classes``.
        """
        super().setup(stage)
        if stage != "fit":
            return
        domains = self._num_matched_domains
        if self.domain_outputs == "classes" and domains > self._num_classes:
            raise MisconfigurationException(
                f"domain_outputs: classes gives the second network {self._num_classes} outputs, "
                f"too few for dam.num_domains {domains}; use domains"
            )
        self.fresh_network(0)

    def forget_compiled(self) -> None:
        """In addition, gradients and what compares them."""
        super().forget_compiled()
        # For a fit that goes on in the middle of an outer loop.
        self._saved_networks = self._unfinished()
        self._networks, self._architectures = {}, {}

    def training_step(self, batch: GroupedBatch, batch_idx: int) -> Tensor:
        """One image update, after the networks' training on the images of the update before."""
        self._advance(batch)
        return super().training_step(batch, batch_idx)

    def network_state(self, step: int) -> _Inner:
        """The network of the class loss, as far as it was trained."""
        return self._networks["class"]

    def domain_state(self, step: int, state: Any) -> _Inner:
        """The network of the domain loss."""
        return self._networks["domain"]

    def _advance(self, batch: GroupedBatch) -> None:
        """Bring the networks to a step: draw them anew, or train them on."""
        iteration, position = divmod(batch.step, self.outer_loop)
        if position == 0:
            self._networks = self._fresh(iteration)
        else:
            if self._saved_networks is not None:
                self._networks = self._restored(iteration, self._saved_networks)
            if self._networks_step != batch.step - 1:
                raise MisconfigurationException(
                    f"step {batch.step} goes on with the networks of the step before, which are "
                    "not here: resume from a checkpoint of this run"
                )
            # All or none, for a checkpoint of a run that ends in here.
            self._networks = {
                branch: self._trained(branch, inner, batch)
                for branch, inner in self._networks.items()
            }
        self._saved_networks = None
        self._networks_step = batch.step

    def _fresh(self, iteration: int) -> dict[Branch, _Inner]:
        networks: dict[Branch, _Inner] = {"class": self._begun("class", iteration, "network")}
        if self.dam is not None and self.dam.weight > 0:
            outputs = self.dam.num_domains if self.domain_outputs == "domains" else None
            networks["domain"] = self._begun("domain", iteration, "network/domain", outputs)
        return networks

    def _begun(
        self, branch: Branch, iteration: int, stream: str, outputs: int | None = None
    ) -> _Inner:
        """A fresh network, in the architecture of those before it."""
        architecture = self._architectures.get(branch)
        if architecture is None:
            network = FlatNetwork(self.fresh_network(iteration, stream, outputs))
            self._architectures[branch] = self._architecture(network)
            return _Inner(self._architectures[branch], network.initial())
        network = architecture.gradients.network
        network.module.train()
        if architecture.weights is None:
            vector = network.adopt(self.fresh_network(iteration, stream, outputs))
        else:
            architecture.weights.draw(
                torch_generator(self.images.device, self.seed, stream, iteration)
            )
            vector = network.initial()
        return _Inner(architecture, vector)

    def _architecture(self, network: FlatNetwork) -> _Architecture:
        channels, height, width = self.images.shape[1:]
        gradients = NetworkGradients(
            network, (channels, height, width), self.images.device, self.compiles
        )
        redrawn = has_fresh_weights(self.backbone) and not list(network.module.buffers())
        weights = FreshWeights(network.module) if redrawn else None
        return _Architecture(gradients, GradientMatching(gradients, self.metric), weights)

    def _trained(self, branch: Branch, inner: _Inner, batch: GroupedBatch) -> _Inner:
        """Train a network on what it is to be trained on between two updates."""
        if branch == "class":
            images, labels = self.images.detach(), self.labels
        elif self.domain_training == "none":
            return inner
        elif self.domain_training == "synthetic":
            assert self.dam is not None
            with torch.no_grad():
                views = self.dam(self.images)
            images = views.flatten(0, 1)
            labels = torch.arange(len(views), device=images.device).repeat_interleave(
                len(self.images)
            )
        else:
            assert batch.domains is not None
            images, labels = _flat(batch.domains)
            images = images.to(self.images.dtype)
        training = InnerTraining(
            self._inner_loop,
            self._lr_network,
            self._batch_train,
            self.operations(branch),
            self.seed,
        )
        inner.network.module.train()
        stream = f"inner/{branch}"
        with (
            self.forward_precision(),
            seeded(images.device, self.seed, f"{stream}/dropout", batch.step),
        ):
            vector = training.train(
                inner.architecture.gradients,
                inner.vector,
                images,
                labels,
                stream,
                batch.step,
                self.images_at_once,
                self._augment,
            )
        if self._rank_and_world_size[1] > 1:
            # Every process trained alike, but not to the last bit where their devices differ.
            for tensor in (vector, *inner.network.module.buffers()):
                torch.distributed.broadcast(tensor, src=0)
        return replace(inner, vector=vector)

    # The loss.

    @property
    def images_at_once(self) -> int:
        """Images in one pass through a network: on a CPU half of what is best for embeddings.

        Gradients with respect to weights go through its caches twice.
        """
        height, width = self.images.shape[-2:]
        return images_at_once(self.device, height, 2 * width, self.max_images)

    @property
    def groups_together(self) -> bool:
        """Whether groups share their passes through a network, within ``max_images``.

        On accelerators, which single groups do not keep busy. Weights of each group are a batch of
        networks, which a CPU computes more slowly than one network after another.
        """
        return self.device.type != "cpu"

    def grouping_loss(
        self, branch: Branch, batch: GroupedBatch, synthetic: Tensor, state: _Inner
    ) -> Tensor:
        """As of `Condenser`, after freezing the statistics of batch normalisation, if any."""
        norms = state.network.batch_norms
        if norms:
            groups = batch.classes if branch == "class" else batch.domains
            assert groups is not None
            images, _ = _flat(groups, _STATISTICS)
            for norm in norms:
                norm.train()
            with torch.no_grad(), self.forward_precision():
                state.network.scores(state.parts, images.to(synthetic.dtype))
            for norm in norms:
                norm.eval()
        return super().grouping_loss(branch, batch, synthetic, state)

    def matching_loss(
        self, state: _Inner, real: Tensor, counts: Tensor, synthetic: Tensor, labels: Tensor
    ) -> Tensor:
        """Distance of the gradients on real and on synthetic images, summed over the groups."""
        valid = torch.arange(real.shape[1], device=real.device) < counts.unsqueeze(1)
        weights = valid.to(real.dtype) / counts.unsqueeze(1)
        together = len(real) if self.groups_together and state.network.batched else 1
        most = max(1, self.images_at_once // together)
        # The graph of a gradient that is differentiated again is twice as large.
        whole = max(1, self.max_images // 2 // together)
        known = host_values(counts)
        total, slopes = torch.zeros((), dtype=real.dtype, device=real.device), []
        for start in range(0, len(real), together):
            rows = slice(start, start + together)
            value, slope = state.architecture.matching(
                state.parts,
                real[rows],
                weights[rows],
                synthetic[rows],
                labels[rows],
                most,
                whole,
                None if known is None else int(known[rows].max()),
            )
            total += value
            slopes.append(slope)
        return carry_gradient(total, [torch.cat(slopes)], [synthetic])

    def knobs(self) -> dict[str, Any]:
        """Arguments that may make a diverging run converge, with their values."""
        knobs = super().knobs()
        if self.outer_loop > 1:
            knobs |= {"lr_network": self._lr_network, "inner_loop": self._inner_loop}
        return knobs

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the networks, in the middle of an outer loop, where nothing else tells them."""
        super().on_save_checkpoint(checkpoint)
        networks = self._unfinished()
        if networks is not None:
            checkpoint["condenser"]["networks"] = networks

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """In addition, take the networks of a checkpoint from the middle of an outer loop.

        Raises:
            MisconfigurationException: in addition, if ``outer_loop`` differs and the checkpoint is
                not between two outer loops of both.
        """
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["hyper_parameters"]
        theirs, _ = _loops(self.ipc, saved["outer_loop"], saved["inner_loop"])
        steps = checkpoint["condenser"]["steps"]
        if theirs != self.outer_loop and (steps % theirs or steps % self.outer_loop):
            raise MisconfigurationException(
                f"outer_loop is {self.outer_loop}, but the checkpoint was made with {theirs}, "
                f"after {steps} steps, where not both begin anew: go on with {theirs}"
            )
        self._networks, self._networks_step = {}, -1
        self._saved_networks = checkpoint["condenser"].get("networks")

    def _unfinished(self) -> dict[str, Any] | None:
        """The networks in the middle of an outer loop, which training goes on with."""
        if self._saved_networks is not None or not self._networks:
            # No step was made with them.
            return self._saved_networks
        if (self._networks_step + 1) % self.outer_loop == 0:
            return None
        unfinished: dict[str, Any] = {"step": self._networks_step}
        for branch, inner in self._networks.items():
            unfinished[branch] = [inner.vector, *inner.network.module.buffers()]
        return unfinished

    def _restored(self, iteration: int, loaded: dict[str, Any]) -> dict[Branch, _Inner]:
        """The networks of a checkpoint."""
        self._networks_step = loaded["step"]
        until = f"until step {(iteration + 1) * self.outer_loop}, where the next outer loop begins"
        networks = self._fresh(iteration)
        for branch, inner in networks.items():
            if branch not in loaded:
                raise MisconfigurationException(
                    "the checkpoint was made with dam.weight 0 in the middle of an outer loop, and "
                    f"has no network for the domain loss; go on with weight 0 {until}"
                )
            vector, *buffers = loaded[branch]
            if vector.shape != inner.vector.shape:
                raise MisconfigurationException(
                    "the checkpoint was made with another domain_outputs in the middle of an outer "
                    f"loop; go on with that {until}"
                )
            for ours, theirs in zip(inner.network.module.buffers(), buffers, strict=True):
                ours.copy_(theirs)
            networks[branch] = replace(inner, vector=vector.to(inner.vector))
        return networks


def _loops(ipc: int, outer: int | None, inner: int | None) -> tuple[int, int]:
    """The loops that are given, or the published ones."""
    if outer is None or inner is None:
        if ipc not in LOOPS:
            published = ", ".join(f"ipc {n}: {o} and {i}" for n, (o, i) in LOOPS.items())
            raise ValueError(
                f"there are no published loops for ipc {ipc}: give outer_loop and inner_loop "
                f"({published})"
            )
        outer, inner = (
            given if given is not None else table
            for given, table in zip((outer, inner), LOOPS[ipc], strict=True)
        )
    if outer < 1 or inner < 0:
        raise ValueError(
            f"outer_loop must be at least 1 and inner_loop 0 or more, got {outer} and {inner}"
        )
    return outer, inner


def _flat(groups: Groups, per_group: int | None = None) -> tuple[Tensor, Tensor]:
    """The real images of all groups, without padding, and their group numbers."""
    images = groups.images(range(len(groups.counts)))[:, :per_group]
    counts = groups.counts.tolist()
    kept = [row[: min(count, len(row))] for row, count in zip(images, counts, strict=True)]
    sizes = torch.tensor([len(row) for row in kept])
    labels = torch.arange(len(kept)).repeat_interleave(sizes)
    return torch.cat(kept), to_device(labels, images.device)
