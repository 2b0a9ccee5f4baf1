"""What an expert is trained on and how: what its trajectory depends on, and nothing else."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from dam_lightning.backbones import build_backbone
from dam_lightning.data.normalisation import Normalisation
from dam_lightning.data.resident import content_fingerprint, default_cache_dir
from dam_lightning.flat_network import FlatNetwork
from dam_lightning.functional import DSA, strategy_operations
from dam_lightning.functional.host import to_device
from dam_lightning.methods.provenance import data_provenance
from dam_lightning.precision import Precision

__all__ = ["ExpertData", "ExpertOptions", "ExpertRecipe"]


class ExpertOptions(TypedDict, total=False):
    """Which experts a student follows; what is left out keeps its default.

    Attributes:
        folder: where their files are, in it ``class`` and ``domain``. Default: a folder of their
            own in the data module's cache, which other runs with the same experts find again.
        count: number of experts; default 100.
        epochs: that they are trained; default: as many as the distillation reads.
        lr: of their SGD; default 0.01.
        batch_size: of their SGD; default 256.
        seed: key of their draws; default 0. Not the run's seed: condensations share experts.
        precision: of their forward passes, ``"float32"`` (default) or ``"bfloat16"``.
        compile: whether their training is compiled, which changes nothing beyond rounding; default
            None: where it is long enough to pay for it.
    """

    folder: str | None
    count: int
    epochs: int
    lr: float
    batch_size: int
    seed: int
    precision: Precision
    compile: bool | None


@dataclass(frozen=True)
class ExpertRecipe:
    """How experts are trained (``buffer.py`` of GeorgeCazenavette/mtt-distillation).

    Attributes:
        backbone: class of the network, as `dam_lightning.backbones.build_backbone` takes it.
        backbone_args: its options.
        augmentation: DSA strategy, parameters drawn for each image; None switches it off.
        lr: step size of SGD, which has no momentum and no weight decay.
        batch_size: images in a step; all training images, reshuffled each epoch.
        seed: key of all draws.
        precision: of the forward passes, ``"float32"`` or ``"bfloat16"``.

    Raises:
        ValueError: if a value is out of its range.
    """

    backbone: str = "ConvNet"
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    augmentation: str | None = DSA
    lr: float = 0.01
    batch_size: int = 256
    seed: int = 0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"experts: lr must be above 0, got {self.lr}")
        if self.batch_size < 1:
            raise ValueError(f"experts: batch_size must be at least 1, got {self.batch_size}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(
                f"experts: precision must be float32 or bfloat16, got {self.precision!r}"
            )
        if self.augmentation is not None:
            strategy_operations(self.augmentation)


class ExpertData:
    """Real images with the labels that experts of one kind learn: classes, or pseudo-domains.

    Args:
        data: a data module after its ``setup``; its ``train``, ``mean``, ``std``, ``class_names``
            and, where it has one, ``whitening`` are used.
        num_domains: None: the labels are classes. Else pseudo-domains, and ``setup_domains`` and
            ``pseudo_domains`` are used too.
        device: where the experts are trained.
    """

    def __init__(self, data: Any, num_domains: int | None, device: torch.device) -> None:
        self.kind = "class" if num_domains is None else "domain"
        self.num_outputs = len(data.class_names) if num_domains is None else num_domains
        if num_domains is None:
            labels: Tensor = data.train.labels
        else:
            data.setup_domains(num_domains)
            labels = data.pseudo_domains
        self._labels = labels.to(device)
        self._split = data.train
        whitening = getattr(data, "whitening", None)
        self._normalisation = Normalisation(data.mean, data.std, whitening, device)
        provenance = data_provenance(data)
        channels, height, width = data.image_shape
        self.image_shape: tuple[int, int, int] = (channels, height, width)
        self._description = {
            "dataset": provenance["dataset"],
            "fingerprint": provenance["fingerprint"]
            or content_fingerprint(data.train, list(data.class_names)),
            "image_shape": list(self.image_shape),
            "mean": provenance["mean"],
            "std": provenance["std"],
            # Not the matrix, whose last bits differ between machines; the data determine it.
            "zca": whitening is not None,
            "labels": self.kind,
            "num_outputs": self.num_outputs,
            "labels_fingerprint": _digest(labels),
        }
        self._cache = Path(getattr(data, "cache_dir", None) or default_cache_dir())

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def device(self) -> torch.device:
        """Where the experts are trained."""
        return self._labels.device

    def batches(self, orders: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images (E, N, C, H, W) and their labels (E, N), N at most ``size``.

        Args:
            orders: (E, M) int64 on the CPU, image numbers.
            size: images of each row in a batch.
        """
        images = self._split.images
        parts = torch.split(to_device(orders, images.device), size, dim=1)
        answers = torch.split(self._labels[to_device(orders, self.device)], size, dim=1)
        for indices, labels in zip(parts, answers, strict=True):
            normalised = self._normalisation(images.index_select(0, indices.flatten()))
            yield normalised.view(*indices.shape, *self.image_shape), labels

    def describe(self, recipe: ExpertRecipe) -> dict[str, Any]:
        """Everything that trajectories depend on, as plain values."""
        described: dict[str, Any] = json.loads(json.dumps(self._description | asdict(recipe)))
        return described

    def default_folder(self, recipe: ExpertRecipe) -> Path:
        """A folder in the cache for experts with this description, and no others."""
        described = self.describe(recipe)
        digest = blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=8).hexdigest()
        return self._cache / "experts" / f"{described['dataset']}-{self.kind}-{digest}"

    def network(self, recipe: ExpertRecipe, number: int) -> FlatNetwork:
        """A fresh expert.

        Raises:
            ValueError: if the backbone cannot be an expert.
        """
        module = build_backbone(
            recipe.backbone,
            self.image_shape,
            self.num_outputs,
            recipe.backbone_args,
            device=self.device,
            seed=recipe.seed,
            stream=f"expert/{self.kind}",
            group=number,
        )
        network = FlatNetwork(module)
        if network.is_plain(self.image_shape, self.device):
            return network
        if network.batch_norms:
            raise ValueError(
                f"{recipe.backbone} with batch normalisation cannot be an expert: a trajectory "
                "holds parameters, and no running statistics; use norm: instancenorm, or a "
                "backbone without batch normalisation"
            )
        if network.is_random(self.image_shape, self.device):
            raise ValueError(
                f"{recipe.backbone} with dropout, or another draw at random in its forward pass, "
                "cannot be an expert: the student's training has to be repeated exactly; switch it "
                "off (dropout, stochastic_depth_prob, drop_path_rate: 0)"
            )
        raise ValueError(
            f"{recipe.backbone} cannot be an expert: its scores depend on the other images of a "
            "batch, or it keeps something in buffers, and a trajectory holds parameters only"
        )


def _digest(tensor: Tensor) -> str:
    return blake2b(tensor.cpu().contiguous().numpy().tobytes(), digest_size=8).hexdigest()
