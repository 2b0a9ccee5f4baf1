"""Networks of torchvision and timm: what they give, and what is refused."""

import sys
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor

from dam_lightning.backbones import Backbone, build_backbone

SHUFFLE = "torchvision:shufflenet_v2_x0_5"
TRANSFORMER = "timm:test_vit"


def pictures(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def weights(name: str, **key: Any) -> list[Tensor]:
    return [p.detach() for p in build_backbone(name, (3, 32, 32), 5, **key).parameters()]


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        (SHUFFLE, (3, 32, 32), {}),
        (SHUFFLE, (3, 40, 64), {}),
        ("torchvision:mobilenet_v3_small", (3, 32, 32), {"dropout": 0.5}),
        ("torchvision:googlenet", (3, 32, 32), {}),
        (TRANSFORMER, (3, 32, 32), {}),
        (TRANSFORMER, (1, 16, 48), {"patch_size": 8}),
        ("timm:test_efficientnet", (3, 33, 40), {}),
        ("timm:test_resnet.r160_in1k", (2, 32, 32), {}),
    ],
)
def test_features_and_scores(name: str, shape: Any, options: dict[str, Any]) -> None:
    network = build_backbone(name, shape, 5, options)
    assert isinstance(network, Backbone)
    assert all(module.training for module in network.modules())
    images = pictures(3, *shape)
    assert network(images).shape == (3, 5)
    network.eval()
    features = network.features(images)
    assert features.shape == (3, network.feature_dim)
    scores = network(images)
    assert torch.equal(scores, network(images))
    inner: Any = network.network
    head = inner.get_classifier() if name.startswith("timm") else network.classifier
    torch.testing.assert_close(scores, head(features))
    assert scores.isfinite().all()


def test_scores_are_those_of_torchvision() -> None:
    images = pictures(2, 3, 32, 32)
    ours = build_backbone(SHUFFLE, (3, 32, 32), 5).eval()
    theirs = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=5).eval()
    state = {key.removeprefix("network."): value for key, value in ours.state_dict().items()}
    state["fc.weight"] = state.pop("classifier.weight")
    state["fc.bias"] = state.pop("classifier.bias")
    theirs.load_state_dict(state)
    assert torch.equal(ours(images), theirs(images))


def test_scores_are_those_of_timm() -> None:
    images = pictures(2, 3, 32, 32)
    ours = build_backbone("timm:test_resnet", (3, 32, 32), 5).eval()
    theirs = timm.create_model("test_resnet", num_classes=5).eval()
    theirs.load_state_dict(ours.network.state_dict())
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("name", "feature_dim"),
    [
        ("alexnet", 4096),
        ("vgg11", 4096),
        ("resnet50", 2048),
        ("densenet121", 1024),
        ("efficientnet_b0", 1280),
        ("convnext_tiny", 768),
        ("swin_t", 768),
        ("vit_b_16", 768),
        ("maxvit_t", 512),
        ("inception_v3", 2048),
    ],
)
def test_families_of_torchvision(name: str, feature_dim: int) -> None:
    shape = (3, 224, 224) if name == "maxvit_t" else (3, 96, 96)
    with torch.device("meta"):
        network = build_backbone(f"torchvision:{name}", shape, 7, device="meta")
        assert network.feature_dim == feature_dim
        assert network(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", [SHUFFLE, TRANSFORMER])
def test_weights_are_fixed_by_the_key(name: str) -> None:
    before = torch.get_rng_state()
    first, second = weights(name, seed=1), weights(name, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[-2], weights(name, seed=2)[-2])


def test_attention_is_differentiated_twice() -> None:
    network = build_backbone(TRANSFORMER, (3, 32, 32), 5)
    images = pictures(2, 3, 32, 32).requires_grad_()
    gradients = torch.autograd.grad(
        network(images).square().sum(), list(network.parameters()), create_graph=True
    )
    total = torch.stack([g.square().sum() for g in gradients]).sum()
    (second,) = torch.autograd.grad(total, images)
    assert second.isfinite().all()
    assert second.any()


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        (
            "torchvision:resnet19",
            (3, 32, 32),
            {},
            "no backbone 'torchvision:resnet19'; the nearest names are .*resnet18",
        ),
        ("torchvision:", (3, 32, 32), {}, "there is no backbone 'torchvision:'"),
        ("torchvision:fasterrcnn_resnet50_fpn", (3, 32, 32), {}, "there is no backbone"),
        (
            "torchvision:resnet18",
            (1, 32, 32),
            {},
            "torchvision:resnet18 takes images of 3 channels, got 1; use",
        ),
        ("torchvision:vit_b_32", (3, 32, 64), {}, "vit_b_32 takes square images, got 32x64; use"),
        ("torchvision:alexnet", (3, 32, 32), {}, "does not take images of 3x32x32.*another size"),
        ("torchvision:squeezenet1_1", (3, 32, 32), {}, "does not end with a linear layer"),
        (SHUFFLE, (3, 32, 32), {"weights": "DEFAULT"}, "random weights; leave out weights"),
        (SHUFFLE, (3, 32, 32), {"num_classes": 3}, "with options .*'num_classes'"),
        (SHUFFLE, (3, 32, 32), {"name": "resnet18"}, "with options .*'name'"),
        (SHUFFLE, (3, 32, 32), {"depth": 3}, "TypeError.*'depth'.*check the options"),
        (SHUFFLE, (3, 0, 32), {}, "must be at least 1"),
        (
            "timm:test_vitt",
            (3, 32, 32),
            {},
            "no backbone 'timm:test_vitt'; the nearest names are .*test_vit",
        ),
        ("timm:hf-hub:timm/resnet18.a1_in1k", (3, 32, 32), {}, "there is no backbone"),
        ("timm:test_vit.nonsense", (3, 32, 32), {}, "'timm:test_vit.nonsense'"),
        (TRANSFORMER, (3, 32, 32), {"pretrained": True}, "random weights; leave out pretrained"),
        (TRANSFORMER, (3, 32, 32), {"in_chans": 1}, "TypeError.*in_chans.*check the options"),
        (TRANSFORMER, (3, 32, 32), {"heads": 1}, "TypeError.*'heads'.*check the options"),
        ("timm:test_resnet", (3, 32, 32), {"features_only": True}, "does not take images"),
    ],
)
def test_refusals(name: str, shape: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(name, shape, 5, options)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ValueError, match=r"'timm:resnet18' needs timm: pip install \"dam-lightning\[timm\]\""
    ):
        build_backbone("timm:resnet18", (3, 32, 32), 5)
