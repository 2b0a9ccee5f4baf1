"""Gradients in pieces, of groups, compiled or not, are the gradients; training by them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dam_lightning.backbones import build_backbone
from dam_lightning.flat_network import FlatNetwork
from dam_lightning.functional import DSA, strategy_operations
from dam_lightning.methods.inner_training import InnerTraining
from dam_lightning.methods.network_gradients import NetworkGradients

SHAPE = (2, 4, 4)
CPU = torch.device("cpu")


def module(norm: str = "instancenorm", seed: int = 0) -> nn.Module:
    options = {"width": 4, "depth": 1, "norm": norm, "activation": "swish"}
    return build_backbone("ConvNet", SHAPE, 3, options, seed=seed).double()


def gradients(network: nn.Module | None = None, compile: bool = False) -> NetworkGradients:
    return NetworkGradients(FlatNetwork(network or module()), SHAPE, CPU, compile)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def groups(count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, and weights that are all different."""
    labels = torch.arange(count * size).reshape(count, size) % 3
    return pictures(count, size, *SHAPE), labels, pictures(count, size, seed=1).abs() + 0.1


def autograd(network: nn.Module, images: Tensor, labels: Tensor, weights: Tensor) -> list[Tensor]:
    """Of the weighted cross entropy, by the network as it is."""
    network.requires_grad_(True)
    losses = F.cross_entropy(network(images), labels, reduction="none")
    return list(torch.autograd.grad((losses * weights).sum(), list(network.parameters())))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("most", [1, 3, 4, 7, 100])
@pytest.mark.parametrize("as_vector", [False, True])
def test_pieces_add_up_to_the_gradient(count: int, most: int, as_vector: bool) -> None:
    """7 images: 7 of one, 3 of three with two overlaps, two of four with one, one of 7."""
    ours = gradients()
    vector = ours.network.initial()
    parts = [vector] if as_vector else ours.parts(vector)
    images, labels, weights = groups(count, 7)
    found = ours.summed(parts, images, labels, weights, most)
    for group in range(count):
        expected = torch.cat(
            [g.flatten() for g in autograd(module(), images[group], labels[group], weights[group])]
        )
        assert_close(ours.network.joined([part[group] for part in found]), expected)


def test_pieces_are_of_one_size_and_count_every_image_once() -> None:
    images, labels, weights = groups(2, 7)
    for most, sizes in ((1, [1] * 7), (3, [3] * 3), (4, [4] * 2), (6, [4] * 2), (7, [7])):
        pieces = list(gradients().pieces(images, labels, weights, most))
        assert [piece.images.shape[1] for piece in pieces] == sizes
        seen = torch.zeros(2, 7, dtype=torch.float64)
        for piece in pieces:
            seen[:, piece.rows] += piece.weights
            assert torch.equal(piece.images, images[:, piece.rows])
            assert torch.equal(piece.labels, labels[:, piece.rows])
        assert torch.equal(seen, weights)
    # Nothing that was given is changed.
    assert torch.equal(weights, groups(2, 7)[2])
    # Compiled for one kind, whatever they were cut from.
    (piece,) = gradients().pieces(images[:1, 2:5], labels[:1, 2:5], weights[:1, 2:5], 3)
    whole = next(gradients().pieces(images[:1], labels[:1], weights[:1], 3))
    for ours, theirs in zip(piece[1:], whole[1:], strict=True):
        assert ours.stride() == theirs.stride()


def test_images_that_no_group_counts_are_left_out() -> None:
    ours = gradients()
    images, labels, weights = groups(2, 9)
    images[:, 4:] = torch.nan
    assert [piece.rows.stop for piece in ours.pieces(images, labels, weights, 2, 4)] == [2, 4]
    parts = ours.parts(ours.network.initial())
    found = ours.summed(parts, images, labels, weights, 2, 4)
    expected = ours.summed(parts, images[:, :4], labels[:, :4], weights[:, :4], 4)
    for mine, other in zip(found, expected, strict=True):
        assert_close(mine, other)


def test_compiled_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of parameters that change and are one by one on a CPU; one compilation for all pieces."""
    said: list[str] = []
    monkeypatch.setattr("dam_lightning.compilation.rank_zero_info", said.append)
    monkeypatch.setattr("dam_lightning.compilation.rank_zero_warn", pytest.fail)
    compiled, plain = gradients(compile=True), gradients()
    assert compiled.compiles
    images, labels, weights = groups(1, 7)
    for vector in (compiled.network.initial(), 2 * compiled.network.initial()):
        parts = compiled.parts(vector)
        assert torch.equal(compiled.network.joined(parts), vector)
        found = compiled.summed(parts, images, labels, weights, 3)
        expected = plain.summed(plain.parts(vector), images, labels, weights, 7)
        assert_close(compiled.network.joined(found), plain.network.joined(expected))
    assert len(said) == 2


def test_what_is_not_plain_is_not_compiled() -> None:
    assert not gradients(module("batchnorm"), compile=True).compiles
    dropping = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 3)).double()
    assert not gradients(dropping, compile=True).compiles
    assert not gradients().compiles


# Training.


def train(ours: NetworkGradients, epochs: int = 3, **options: Any) -> Tensor:
    training = InnerTraining(epochs, 0.2, 4, options.get("operations", ()), seed=5)
    dtype = options.get("dtype", torch.float64)
    images, labels = pictures(6, *SHAPE).to(dtype), torch.tensor([0, 0, 1, 1, 2, 2])
    vector = ours.network.initial().to(dtype)
    return training.train(ours, vector, images, labels, "inner/class", 7, options.get("most"))


def test_training_returns_a_vector_and_changes_nothing_it_was_given() -> None:
    ours = gradients()
    before = ours.network.initial()
    trained = train(ours)
    assert trained.shape == before.shape
    assert trained.grad_fn is None
    assert not trained.requires_grad
    assert not torch.equal(trained, before)
    assert torch.equal(ours.network.initial(), before)
    assert torch.equal(train(ours, epochs=0), before)
    assert torch.equal(train(ours), trained)


def test_training_lowers_the_loss() -> None:
    ours = gradients()
    flat = ours.network
    images, labels = pictures(6, *SHAPE), torch.tensor([0, 0, 1, 1, 2, 2])
    losses = [
        float(flat.loss(flat.split(vector), images, labels))
        for vector in (flat.initial(), train(ours, 20))
    ]
    assert losses[1] < 0.7 * losses[0]


@pytest.mark.parametrize("operations", [(), strategy_operations(DSA)], ids=["plain", "augmented"])
def test_training_in_pieces_is_the_same_training(operations: tuple[int, ...]) -> None:
    """Batches of four and of two."""
    whole = train(gradients(), operations=operations)
    for most in (1, 2, 3):
        assert_close(train(gradients(), operations=operations, most=most), whole)
    assert not torch.allclose(whole, train(gradients(), operations=(4,)))


def test_compiled_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch of an epoch, which is smaller, is not compiled for."""
    said: list[str] = []
    monkeypatch.setattr("dam_lightning.compilation.rank_zero_info", said.append)
    monkeypatch.setattr("dam_lightning.compilation.rank_zero_warn", pytest.fail)
    assert_close(train(gradients(compile=True), most=4), train(gradients()))
    assert len(said) == 2


def test_training_with_batch_normalisation_takes_whole_batches() -> None:
    ours, whole = gradients(module("batchnorm")), gradients(module("batchnorm"))
    assert torch.equal(train(ours, most=1), train(whole))
    for mine, other in zip(
        ours.network.module.buffers(), whole.network.module.buffers(), strict=True
    ):
        assert torch.equal(mine, other)
    assert int(ours.network.module.state_dict()["blocks.1.num_batches_tracked"]) == 6


def test_training_within_autocast_sees_its_own_updates() -> None:
    """Autocast keeps casts of parameters, which would hide that there are others."""
    ours = gradients(module().float())
    start = ours.network.initial()
    exact = train(ours, 10, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
        rounded = train(ours, 10, dtype=torch.float32)
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).norm() < 0.1 * (exact - start).norm()
