"""What is compiled instead of PyTorch's group normalisation is the same function."""

import pytest
import torch
from torch import nn

from dam_lightning.backbones import ConvNet
from dam_lightning.backbones.group_norm import GroupNorm


@pytest.mark.parametrize("groups", [1, 2, 6], ids=["one", "some", "instance norm"])
def test_numbers_and_derivatives(monkeypatch: pytest.MonkeyPatch, groups: int) -> None:
    torch.manual_seed(0)
    plain, ours = (norm(groups, 6).double() for norm in (nn.GroupNorm, GroupNorm))
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    ours.load_state_dict(plain.state_dict())
    images = (3 + 2 * torch.randn(4, 6, 5, 3)).double().requires_grad_()
    upstream = torch.randn_like(images)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = []
    for norm in (plain, ours):
        result = norm(images)
        inputs = [images, *norm.parameters()]
        first = torch.autograd.grad(result, inputs, upstream, create_graph=True)
        total = torch.stack([gradient.square().sum() for gradient in first]).sum()
        second = torch.autograd.grad(total, inputs[:2])
        found.append([result, *first, *second])
    for theirs, mine in zip(*found, strict=True):
        assert float(theirs.detach().abs().max()) > 0.1
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_rounded_inputs_are_normalised_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    images = (100 + torch.randn(2, 4, 8, 8)).bfloat16()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = GroupNorm(4, 4)(images)
    assert found.dtype == torch.bfloat16
    expected = nn.GroupNorm(4, 4)(images.float())
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)


def test_networks_have_it() -> None:
    for norm, groups in (("instancenorm", 8), ("groupnorm", 4)):
        network = ConvNet((3, 8, 8), 2, width=8, depth=1, norm=norm)
        (own,) = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
        assert isinstance(own, GroupNorm)
        assert own.num_groups == groups
