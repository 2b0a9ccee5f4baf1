"""How a training set is judged: which networks are trained on it, and how."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict

import torch

from dam_lightning.backbones.options import BackboneArgs
from dam_lightning.compilation import worth_compiling
from dam_lightning.functional import DSA, strategy_operations
from dam_lightning.kinds import is_finite, is_whole
from dam_lightning.precision import Precision, fast_precision, forward_passes

__all__ = ["BackboneOptions", "Recipe", "RecipeOptions"]


class _Backbone(TypedDict):
    backbone: str


class BackboneOptions(_Backbone, total=False):
    """A backbone, and options of its own."""

    backbone_args: BackboneArgs


class RecipeOptions(TypedDict, total=False):
    """Any of the fields of `Recipe`; what is left out keeps its default."""

    backbone: str
    backbone_args: BackboneArgs
    num_networks: int
    epochs: int
    lr: float
    momentum: float
    weight_decay: float
    batch_size: int
    augmentation: str | None
    precision: Precision | None
    compile: bool | None


@dataclass(frozen=True)
class Recipe:
    """The evaluation protocol of DM, which the paper uses throughout (``evaluate_synset``).

    Attributes:
        backbone: class of the networks, as `dam_lightning.backbones.build_backbone` takes it.
        backbone_args: its options.
        num_networks: networks trained, each from fresh weights; figures are means over them.
        epochs: epochs of each. The originals run one more than they say, so the paper's 1000 are
            1001.
        lr: step size of SGD; a tenth of it, with fresh momentum, after epoch (epochs - 1) // 2 + 1,
            counted from 0.
        momentum: of SGD.
        weight_decay: of SGD.
        batch_size: images in a step; all of them, reshuffled each epoch.
        augmentation: DSA strategy, parameters drawn for each image; None switches it off.
        precision: of the forward passes in training, whatever the Trainer's is; the test is in
            float32. None: bfloat16 where the device is fast at it, which changes accuracies by less
            than another seed does (``benchmarks/README.md``); else float32.
        compile: compile training and test, which changes no figure beyond rounding, and is no part
            of what a condensed set stores. None: where the training is long enough to pay for it.

    Raises:
        ValueError: if a value is of another kind, or out of its range.
    """

    backbone: str = "ConvNet"
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    num_networks: int = 10
    epochs: int = 1001
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    augmentation: str | None = DSA
    precision: Precision | None = None
    compile: bool | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.backbone, str):
            raise ValueError(f"recipe: backbone must be a text, got {self.backbone!r}")
        _check_backbone_args(self.backbone_args)
        for name in ("num_networks", "epochs", "batch_size"):
            if not is_whole(getattr(self, name)):
                raise ValueError(
                    f"recipe: {name} must be a whole number, got {getattr(self, name)!r}"
                )
        for name in ("lr", "momentum", "weight_decay"):
            if not is_finite(getattr(self, name)):
                raise ValueError(
                    f"recipe: {name} must be a finite number, got {getattr(self, name)!r}"
                )
        for name in ("num_networks", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"recipe: {name} must be at least 1, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"recipe: lr must be above 0, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"recipe: momentum must be in [0, 1), got {self.momentum}")
        if not self.weight_decay >= 0:
            raise ValueError(f"recipe: weight_decay must be 0 or above, got {self.weight_decay}")
        if self.precision not in (None, "float32", "bfloat16"):
            raise ValueError(
                f"recipe: precision must be float32 or bfloat16, got {self.precision!r}"
            )
        if self.compile not in (None, False, True):
            raise ValueError(f"recipe: compile must be true or false, got {self.compile!r}")
        if self.augmentation is not None:
            if not isinstance(self.augmentation, str):
                raise ValueError(
                    f"recipe: augmentation must be a text or none, got {self.augmentation!r}"
                )
            strategy_operations(self.augmentation)

    @classmethod
    def merged(
        cls, stored: Mapping[str, Any], options: "RecipeOptions | BackboneOptions | None"
    ) -> "Recipe":
        """A stored recipe with some fields replaced.

        Single options of the backbone replace or join the stored ones; another backbone begins
        without them.

        Raises:
            ValueError: if there is no such field, or a value is of another kind, or out of its
                range.
        """
        merged = {**stored, **(options or {})}
        unknown = set(merged) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"recipe: there is no {', '.join(sorted(unknown))}")
        same = merged.get("backbone") == stored.get("backbone")
        own = stored.get("backbone_args", {}) if same else {}
        given = (options or {}).get("backbone_args")
        given = {} if given is None else given
        for backbone_args in (own, given):
            _check_backbone_args(backbone_args)
        merged["backbone_args"] = {**own, **given}
        if merged.get("augmentation") == "None":
            # What jsonargparse makes of --model.recipe.augmentation null.
            merged["augmentation"] = None
        return cls(**merged)

    @property
    def network(self) -> str:
        """The backbone and its options, e.g. ``ConvNet`` or ``ConvNet(depth=4)``."""
        options = ", ".join(f"{name}={value}" for name, value in self.backbone_args.items())
        return f"{self.backbone}({options})" if options else self.backbone

    def precision_on(self, device: torch.device) -> Precision:
        """Of the networks' forward passes in their training on a device."""
        return self.precision or fast_precision(device)

    def forward_passes(self, device: torch.device) -> torch.autocast:
        """A context for the networks' forward passes on a device, to be entered for every step."""
        return forward_passes(device, self.precision_on(device))

    def compiles(self, steps: int) -> bool:
        """Whether networks are compiled that are trained for so many steps in all."""
        return worth_compiling(steps) if self.compile is None else self.compile

    def as_dict(self) -> dict[str, Any]:
        """What makes the protocol, as plain values, for metadata; `compile` is no part of it."""
        return {name: value for name, value in asdict(self).items() if name != "compile"}


def _check_backbone_args(given: Any) -> None:
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"recipe: backbone_args must be a mapping of options, got {given!r}")
