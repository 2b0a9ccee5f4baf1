"""Every backbone condenses, and is trained and tested by the protocol."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dam_lightning import DC, DM
from dam_lightning.backbones import build_backbone
from dam_lightning.data import Split
from dam_lightning.evaluation.recipe import Recipe
from dam_lightning.evaluation.training import train_network
from tests.tiny import TinyData, tiny_trainer

SHAPE = (3, 32, 32)
TRANSFORMER = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 16, "head_width": 4}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "ConvNet": ("ConvNet", {"width": 8, "depth": 2}),
    "AlexNet": ("AlexNet", {"width": 4}),
    "VGG11": ("VGG11", {"width": 4}),
    "ResNet18": ("ResNet18", {"width": 4}),
    "ResNet18_AP": ("ResNet18", {"width": 4, "downsampling": "avgpool"}),
    "ViTTiny": ("ViTTiny", {**TRANSFORMER, "patch_size": 8}),
    "ViTSmall": ("ViTSmall", {**TRANSFORMER, "patch_size": 8}),
    "timm": ("timm:test_vit", {}),
}
WITH_BATCH_NORM: dict[str, tuple[str, dict[str, Any]]] = {
    "AlexNetBN": ("AlexNet", {"width": 4, "norm": "batchnorm"}),
    "VGG11BN": ("VGG11", {"width": 4, "norm": "batchnorm"}),
    "ResNet18BN": ("ResNet18", {"width": 4, "norm": "batchnorm"}),
    "torchvision": ("torchvision:shufflenet_v2_x0_5", {}),
}


class LargerData(TinyData):
    """The tiny images at 32x32, every pixel four times."""

    def load_splits(self) -> Mapping[str, Split]:
        return {
            name: Split(_enlarged(split.images), split.labels, split.domains, split.paths)
            for name, split in super().load_splits().items()
        }


def _enlarged(images: Tensor) -> Tensor:
    return images.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize("which", BACKBONES)
@pytest.mark.parametrize("method", [DM, DC])
def test_condensing(method: type[DM] | type[DC], which: str, tmp_path: Path) -> None:
    backbone, backbone_args = BACKBONES[which]
    options: dict[str, Any] = {"outer_loop": 2, "inner_loop": 1} if method is DC else {}
    module = method(
        backbone=backbone,
        backbone_args=backbone_args,
        dam={"num_domains": 2, "init": "normal"},
        seed=0,
        num_classes=3,
        image_shape=SHAPE,
        **options,
    )
    assert module.dam is not None
    images, masks = module.images.detach().clone(), module.dam.logits.detach().clone()
    data = LargerData(batch_real=3, cache_dir=str(tmp_path / "cache"))
    tiny_trainer(tmp_path, max_steps=2 if method is DC else 1).fit(module, datamodule=data)
    for before, after in ((images, module.images), (masks, module.dam.logits)):
        assert after.isfinite().all()
        assert not torch.equal(before, after)


@pytest.mark.parametrize("which", [*BACKBONES, *WITH_BATCH_NORM])
def test_evaluating(which: str) -> None:
    backbone, backbone_args = {**BACKBONES, **WITH_BATCH_NORM}[which]
    recipe = Recipe(backbone=backbone, backbone_args=backbone_args, epochs=1)
    images = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 3
    network = train_network(images, labels, 3, recipe, seed=0, number=1)
    fresh: nn.Module = build_backbone(
        backbone, SHAPE, 3, backbone_args, stream="evaluation/network", group=1
    )
    changed = [
        not torch.equal(a, b) for a, b in zip(network.parameters(), fresh.parameters(), strict=True)
    ]
    assert sum(changed) > len(changed) // 2
    assert network(images).shape == (6, 3)
    assert network(images).isfinite().all()
