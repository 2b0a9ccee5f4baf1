"""A network as a function of a vector: the same scores and gradients as the network itself."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from dam_lightning.backbones import ConvNet, build_backbone
from dam_lightning.flat_network import FlatNetwork

SHAPE = (2, 4, 4)


def module(norm: str = "instancenorm", seed: int = 0) -> nn.Module:
    options = {"width": 4, "depth": 1, "norm": norm, "activation": "swish"}
    return build_backbone("ConvNet", SHAPE, 3, options, seed=seed).double()


def pictures(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def autograd(network: nn.Module, images: Tensor, labels: Tensor, weights: Tensor) -> list[Tensor]:
    """Gradients of the network as it is, of the weighted cross entropy."""
    network.requires_grad_(True)
    losses = F.cross_entropy(network(images), labels, reduction="none")
    found = torch.autograd.grad((losses * weights).sum(), list(network.parameters()))
    return list(found)


def test_the_vector_is_the_parameters_in_their_order() -> None:
    plain = module()
    flat = FlatNetwork(module())
    parameters = [parameter.detach() for parameter in plain.parameters()]
    vector = flat.initial()
    assert vector.shape == (flat.size,)
    assert flat.size == sum(parameter.numel() for parameter in parameters)
    assert not vector.requires_grad
    assert torch.equal(vector, torch.cat([parameter.flatten() for parameter in parameters]))
    for ours, theirs in zip(flat.split(vector), parameters, strict=True):
        assert torch.equal(ours, theirs)
    # A beginning only: training elsewhere must not reach into the module.
    before = vector.clone()
    vector += 1
    assert torch.equal(flat.initial(), before)


def test_a_network_of_one_parameter_is_copied_too() -> None:
    flat = FlatNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)))
    vector = flat.initial()
    before = vector.clone()
    vector += 1
    assert torch.equal(flat.initial(), before)


def test_scores_are_those_of_the_given_parameters() -> None:
    own, other = module(seed=0), module(seed=1)
    flat = FlatNetwork(own)
    images = pictures(5, *SHAPE)
    vector = torch.cat([parameter.detach().flatten() for parameter in other.parameters()])
    before = flat.initial()
    assert torch.equal(flat.scores(flat.split(vector), images), other(images))
    assert not torch.equal(flat.scores(flat.split(before), images), other(images))
    assert torch.equal(flat.initial(), before)


def test_it_is_no_module_and_its_network_is_not_trained() -> None:
    flat = FlatNetwork(module())
    assert not isinstance(flat, nn.Module)
    assert not any(parameter.requires_grad for parameter in flat.module.parameters())
    assert flat.batch_norms == []
    norms = FlatNetwork(module("batchnorm")).batch_norms
    assert [type(norm) for norm in norms] == [nn.BatchNorm2d]


def test_the_vector_itself_serves_as_parameters() -> None:
    """In a list; gradients are then one vector for each group."""
    flat = FlatNetwork(module())
    vector, images = flat.initial(), pictures(2, 3, *SHAPE)
    assert torch.equal(flat.scores([vector], images[0]), flat.scores(flat.split(vector), images[0]))
    labels, weights = torch.zeros(2, 3, dtype=torch.int64), pictures(2, 3).abs()
    (together,) = flat.gradients([vector], images, labels, weights)
    each = flat.gradients(flat.split(vector), images, labels, weights)
    expected = torch.cat([gradient.flatten(1) for gradient in each], dim=1)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-12)
    only = FlatNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)))
    assert only.shaped([only.initial()])[0].shape == (2, 4)
    assert only.shaped(only.split(only.initial()))[0].shape == (2, 4)


def test_another_network_is_adopted() -> None:
    """Its parameters come as a vector, its buffers take the place of the old ones."""
    flat, fresh = FlatNetwork(module("batchnorm")), module("batchnorm", seed=1)
    flat.scores(flat.split(flat.initial()), pictures(5, *SHAPE))
    vector = flat.adopt(fresh)
    assert not vector.requires_grad
    for ours, theirs in zip(flat.split(vector), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(flat.module.buffers(), fresh.buffers(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs


def test_buffers_are_updated() -> None:
    own, plain = module("batchnorm"), module("batchnorm")
    flat = FlatNetwork(own)
    images = pictures(5, *SHAPE)
    flat.scores(flat.split(flat.initial()), images)
    plain(images)
    for ours, theirs in zip(own.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert int(own.state_dict()["blocks.1.num_batches_tracked"]) == 1


def test_loss_is_the_weighted_cross_entropy() -> None:
    flat = FlatNetwork(module())
    parameters = flat.split(flat.initial())
    images, labels = pictures(4, *SHAPE), torch.tensor([0, 2, 1, 2])
    weights = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    each = [float(flat.loss(parameters, images[i : i + 1], labels[i : i + 1])) for i in range(4)]
    assert float(flat.loss(parameters, images, labels)) == pytest.approx(sum(each) / 4)
    weighted = 0.5 * each[0] + 0.25 * each[1] + 0.25 * each[2]
    assert float(flat.loss(parameters, images, labels, weights)) == pytest.approx(weighted)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("norm", ["instancenorm", "batchnorm"])
def test_gradients_are_those_of_each_group(groups: int, norm: str) -> None:
    """Rows of weight 0 are padding and count for nothing."""
    plain, flat = module(norm), FlatNetwork(module(norm))
    if norm == "batchnorm":
        plain.eval()
        flat.module.eval()
    images = pictures(groups, 5, *SHAPE)
    labels = torch.arange(groups * 5).reshape(groups, 5) % 3
    weights = pictures(groups, 5, seed=1).abs()
    weights[-1, 3:] = 0
    found = flat.gradients(flat.split(flat.initial()), images, labels, weights)
    parameters = list(plain.parameters())
    assert [f.shape for f in found] == [(groups, *p.shape) for p in parameters]
    for group in range(groups):
        count = 3 if group == groups - 1 else 5
        expected = autograd(
            plain, images[group, :count], labels[group, :count], weights[group, :count]
        )
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours[group], theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_can_be_differentiated_once_more(groups: int) -> None:
    flat = FlatNetwork(module())
    images = pictures(groups, 2, *SHAPE)
    labels = torch.tensor([[0, 1], [2, 2]])[:groups]
    weights = torch.full((groups, 2), 0.5, dtype=torch.float64)

    def squares(images: Tensor) -> Tensor:
        found = flat.gradients(flat.split(flat.initial()), images, labels, weights)
        return torch.stack([tensor.square().sum() for tensor in found]).sum()

    assert torch.autograd.gradcheck(squares, images.requires_grad_())


def test_parameters_require_nothing_of_the_caller() -> None:
    """A gradient arrives at the vector that the parameters were split from."""
    flat = FlatNetwork(module())
    vector = flat.initial().requires_grad_()
    images, labels = pictures(4, *SHAPE), torch.tensor([0, 2, 1, 2])
    (found,) = torch.autograd.grad(flat.loss(flat.split(vector), images, labels), vector)
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    (expected,) = flat.gradients([vector.detach()], images[None], labels[None], weights[None])
    torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-12)


def test_convnet_is_what_was_tested() -> None:
    assert isinstance(module(), ConvNet)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm([2, 4, 4]),
        nn.InstanceNorm2d(2, affine=True),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.GroupNorm(2, 2),
        nn.BatchNorm2d(2).eval(),
    ],
    ids=lambda norm: type(norm).__name__ + ("" if norm.training else " at rest"),
)
def test_second_derivatives_of_groups_together_are_those_of_groups_apart(norm: nn.Module) -> None:
    """PyTorch's own norms too, in networks from elsewhere."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 2, 1), norm, nn.SiLU(), nn.Flatten(), nn.Linear(32, 3))
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    flat = FlatNetwork(network.double())
    parameters = flat.split(flat.initial())
    images, labels = pictures(2, 3, *SHAPE), torch.tensor([[0, 1, 1], [2, 0, 2]])
    weights = torch.full((2, 3), 1 / 3, dtype=torch.float64)

    def second(groups: list[slice]) -> Tensor:
        x = images.clone().requires_grad_()
        gradients = [
            gradient
            for group in groups
            for gradient in flat.gradients(parameters, x[group], labels[group], weights[group])
        ]
        total = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        return torch.autograd.grad(total, x)[0]

    apart = second([slice(0, 1), slice(1, 2)])
    assert apart.any()
    torch.testing.assert_close(second([slice(0, 2)]), apart, atol=1e-9, rtol=1e-7)


class Dropping(ConvNet):
    """Drops by a function, not by a module."""

    def features(self, images: Tensor) -> Tensor:
        return F.dropout(super().features(images), 0.1, self.training)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (ConvNet((3, 8, 8), 2, width=4, depth=1), False),
        (Dropping((3, 8, 8), 2, width=4, depth=1), True),
        (nn.Sequential(StochasticDepth(0.01, "row"), nn.Flatten(), nn.Linear(192, 2)), True),
        (nn.Sequential(nn.Dropout(0.0), nn.Flatten(), nn.Linear(192, 2)), False),
    ],
    ids=["nothing", "function", "stochastic depth", "dropout of 0"],
)
def test_draws_in_the_forward_pass_are_found(network: nn.Module, expected: bool) -> None:
    state = torch.get_rng_state()
    flat, where = FlatNetwork(network), torch.device("cpu")
    assert flat.is_random((3, 8, 8), where) == expected
    assert flat.is_plain((3, 8, 8), where) == (not expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_batch_normalisation_is_not_plain() -> None:
    flat = FlatNetwork(module("batchnorm"))
    before = [buffer.clone() for buffer in flat.module.buffers()]
    assert not flat.is_plain(SHAPE, torch.device("cpu"))
    for buffer, untouched in zip(flat.module.buffers(), before, strict=True):
        assert torch.equal(buffer, untouched)


def test_trying_a_network_leaves_no_trace() -> None:
    norm = nn.InstanceNorm2d(2, track_running_stats=True)
    flat = FlatNetwork(nn.Sequential(norm, nn.Flatten(), nn.Linear(32, 3)).double())
    before = [buffer.clone() for buffer in flat.module.buffers()]
    assert not flat.is_plain(SHAPE, torch.device("cpu"))
    for buffer, untouched in zip(flat.module.buffers(), before, strict=True):
        assert torch.equal(buffer, untouched)
