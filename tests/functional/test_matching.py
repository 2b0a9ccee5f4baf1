"""The losses of DM, DC and MTT against plain loops."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from dam_lightning.functional import (
    distribution_matching_loss,
    gradient_matching_loss,
    trajectory_matching_loss,
)
from tests.reference import dm

SHAPES = [
    (4, 3, 3, 3),  # convolution
    (4,),  # its bias
    (4, 5, 6),  # layer norm
    (4, 5, 6),
    (4,),  # group norm
    (4,),
    (7, 10),  # linear layer
    (7,),
]
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["64", "32"]
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def gradients(seed: int) -> list[Tensor]:
    return [draw(*shape, seed=seed + n) for n, shape in enumerate(SHAPES)]


# Distribution matching.


def plain_distribution_loss(real: Tensor, synthetic: Tensor, counts: list[int]) -> Tensor:
    loss = torch.zeros((), dtype=real.dtype)
    for group, count in enumerate(counts):
        loss = loss + dm.group_loss(real[group, :count], synthetic[group], lambda b: b, None)
    return loss


@PRECISIONS
@pytest.mark.parametrize("counts", [None, [5, 5, 5, 5], [5, 1, 3, 4]])
def test_distribution_matching_equals_the_plain_loop(
    counts: list[int] | None, dtype: torch.dtype, tolerance: float
) -> None:
    real, synthetic = draw(4, 5, 6), draw(4, 2, 6, seed=1).requires_grad_()
    expected = plain_distribution_loss(real, synthetic, counts or [5] * 4)
    (expected_gradient,) = torch.autograd.grad(expected, synthetic)
    ours = synthetic.detach().to(dtype).requires_grad_()
    found = distribution_matching_loss(
        real.to(dtype), ours, None if counts is None else torch.tensor(counts)
    )
    (gradient,) = torch.autograd.grad(found, ours)
    assert found.shape == ()
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=tolerance, rtol=tolerance)


def test_distribution_matching_of_a_written_example() -> None:
    real = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [9.0, 9.0]]])
    synthetic = torch.tensor([[[1.0, 1.0]], [[2.0, 2.0]]])
    counts = torch.tensor([2, 1])
    # (2 - 1)^2 + (3 - 1)^2, and 2 * (0 - 2)^2
    assert distribution_matching_loss(real, synthetic, counts).item() == 13


@pytest.mark.parametrize("padding", [0.0, 1e30, math.inf, math.nan])
def test_padding_takes_no_part(padding: float) -> None:
    counts = torch.tensor([5, 1, 3])
    real, synthetic = draw(3, 5, 6), draw(3, 2, 6, seed=1)
    padded = real.clone()
    for group, count in enumerate(counts):
        padded[group, count:] = padding
    results = []
    for features in (real, padded):
        x, s = features.clone().requires_grad_(), synthetic.clone().requires_grad_()
        loss = distribution_matching_loss(x, s, counts)
        results.append((loss.detach(), *torch.autograd.grad(loss, [x, s])))
    for clean, other in zip(*results, strict=True):
        assert torch.equal(clean, other)
    real_gradient = results[1][1]
    for group, count in enumerate(counts):
        assert not real_gradient[group, count:].any()
        assert bool((real_gradient[group, :count] != 0).all())


def test_full_counts_are_no_counts() -> None:
    real, synthetic = draw(3, 5, 6), draw(3, 2, 6, seed=1)
    full = distribution_matching_loss(real, synthetic, torch.tensor([5, 5, 5]))
    torch.testing.assert_close(full, distribution_matching_loss(real, synthetic))
    assert distribution_matching_loss(real, real).item() == 0


def test_distribution_matching_under_transforms() -> None:
    real, synthetic, counts = draw(2, 4, 3), draw(5, 2, 3, 3, seed=1), torch.tensor([4, 2])
    assert gradcheck(
        lambda s: distribution_matching_loss(real, s, counts), (synthetic[0].requires_grad_(),)
    )
    synthetic = synthetic.detach()
    grad = torch.func.grad(distribution_matching_loss, argnums=1)
    together = torch.func.vmap(grad, in_dims=(None, 0, None))(real, synthetic, counts)
    for n in range(5):
        torch.testing.assert_close(together[n], grad(real, synthetic[n], counts))


@pytest.mark.parametrize(
    ("real", "synthetic"),
    [((4, 6), (4, 6)), ((2, 4, 6), (1, 4, 6)), ((2, 4, 6), (2, 4, 1)), ((2, 4, 6), (2, 6))],
)
def test_features_must_fit(real: tuple[int, ...], synthetic: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="same G and F"):
        distribution_matching_loss(torch.zeros(real), torch.zeros(synthetic))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([0, 4], r"lie in 1\.\.4, got \[0, 4\]"),
        ([4, 5], r"lie in 1\.\.4, got \[4, 5\]"),
        ([4], r"must be \(2,\), got \(1,\)"),
        ([4, 4, 4], r"must be \(2,\), got \(3,\)"),
    ],
)
def test_counts_must_fit(counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distribution_matching_loss(torch.zeros(2, 4, 6), torch.zeros(2, 1, 6), torch.tensor(counts))


# Gradient matching.


def plain_gradient_loss(real: list[Tensor], synthetic: list[Tensor], metric: str) -> Tensor:
    if metric == "layerwise_cosine":
        loss = torch.zeros((), dtype=real[0].dtype)
        for a, b in zip(real, synthetic, strict=True):
            if a.ndim == 1:
                continue
            for row_a, row_b in zip(a, b, strict=True):
                dot, square_a, square_b = (
                    (p * q).sum() for p, q in ((row_a, row_b), (row_a, row_a), (row_b, row_b))
                )
                loss = loss + 1 - dot / (square_a.sqrt() * square_b.sqrt() + 1e-6)
        return loss
    a, b = (torch.cat([g.reshape(-1) for g in side]) for side in (real, synthetic))
    if metric == "mse":
        return sum(((p - q) ** 2 for p, q in zip(a, b, strict=True)), torch.zeros(()))
    return 1 - (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt() + 1e-6)


@PRECISIONS
@pytest.mark.parametrize("metric", ["layerwise_cosine", "mse", "cos"])
def test_gradient_matching_equals_the_plain_loop(
    metric: str, dtype: torch.dtype, tolerance: float
) -> None:
    real, synthetic = gradients(0), [g.requires_grad_() for g in gradients(100)]
    expected = plain_gradient_loss(real, synthetic, metric)
    expected_gradients = torch.autograd.grad(expected, synthetic, materialize_grads=True)
    ours = [g.detach().to(dtype).requires_grad_() for g in synthetic]
    found = gradient_matching_loss([g.to(dtype) for g in real], ours, metric)  # type: ignore[arg-type]
    found_gradients = torch.autograd.grad(found, ours, materialize_grads=True)
    assert found.shape == ()
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=tolerance)
    for a, b in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a.double(), b, atol=tolerance, rtol=tolerance)


def test_the_default_metric_is_the_papers() -> None:
    real, synthetic = gradients(0), gradients(100)
    expected = gradient_matching_loss(real, synthetic, "layerwise_cosine")
    assert torch.equal(gradient_matching_loss(real, synthetic), expected)


def test_layerwise_cosine_counts_the_rows_that_point_elsewhere() -> None:
    real = gradients(0)
    rows = 4 + 4 + 4 + 7
    opposite = gradient_matching_loss(real, [-g for g in real]).item()
    assert gradient_matching_loss(real, real).item() == pytest.approx(0, abs=1e-4)
    assert gradient_matching_loss(real, [3 * g for g in real]).item() == pytest.approx(0, abs=1e-4)
    assert opposite == pytest.approx(2 * rows, abs=1e-4)


def test_layerwise_cosine_leaves_one_dimensional_parameters_out() -> None:
    real, synthetic = gradients(0), gradients(100)
    changed = [g if g.ndim > 1 else g + 5 for g in synthetic]
    assert torch.equal(
        gradient_matching_loss(real, changed), gradient_matching_loss(real, synthetic)
    )
    vectors = [torch.ones(3), torch.ones(2)]
    assert gradient_matching_loss(vectors, vectors).item() == 0
    assert gradient_matching_loss(real, changed, "mse") != gradient_matching_loss(
        real, synthetic, "mse"
    )


@pytest.mark.parametrize("metric", ["layerwise_cosine", "cos"])
def test_a_zero_gradient_is_at_distance_one(metric: str) -> None:
    real = [draw(3, 4)]
    synthetic = [torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)]
    loss = gradient_matching_loss(real, synthetic, metric)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, synthetic)
    assert loss.item() == (3 if metric == "layerwise_cosine" else 1)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("metric", ["layerwise_cosine", "mse", "cos"])
def test_gradient_matching_is_differentiable_through_a_network(metric: str) -> None:
    """As DC uses it: from the loss through the gradient of a network to its images."""
    real_images, images = draw(3, 4), draw(2, 4, seed=1).requires_grad_()
    network = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    parameters = list(network.parameters())

    def loss(x: Tensor) -> Tensor:
        real = torch.autograd.grad(network(real_images).square().sum(), parameters)
        synthetic = torch.autograd.grad(network(x).square().sum(), parameters, create_graph=True)
        return gradient_matching_loss(real, synthetic, metric)  # type: ignore[arg-type]

    assert gradcheck(loss, (images,))


@pytest.mark.parametrize("metric", ["layerwise_cosine", "mse", "cos"])
def test_gradient_matching_under_transforms(metric: str) -> None:
    real, synthetic = [draw(3, 4), draw(3)], [draw(5, 3, 4, seed=1), draw(5, 3, seed=2)]

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        return gradient_matching_loss(real, [weight, bias], metric)  # type: ignore[arg-type]

    inputs = tuple(g[0].clone().requires_grad_() for g in synthetic)
    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)
    grad = torch.func.grad(loss, argnums=(0, 1))
    together = torch.func.vmap(grad)(*synthetic)
    for n in range(5):
        alone = grad(*(g[n] for g in synthetic))
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[n], b)


def test_gradients_must_fit() -> None:
    good = [torch.ones(3, 4), torch.ones(3)]
    for bad in ([torch.ones(3, 4)], [torch.ones(4, 3), torch.ones(3)], good[::-1]):
        with pytest.raises(ValueError, match="same shapes in the same order"):
            gradient_matching_loss(good, bad)
    with pytest.raises(ValueError, match="no gradient"):
        gradient_matching_loss([], [])
    with pytest.raises(ValueError, match="layerwise_cosine, mse or cos, got 'l2'"):
        gradient_matching_loss(good, good, "l2")  # type: ignore[arg-type]


# Trajectory matching.


@PRECISIONS
def test_trajectory_matching_equals_the_plain_loop(dtype: torch.dtype, tolerance: float) -> None:
    final, start, target = draw(50), draw(50, seed=1), draw(50, seed=2)
    distance = sum((f - t) ** 2 for f, t in zip(final.tolist(), target.tolist(), strict=True))
    travelled = sum((s - t) ** 2 for s, t in zip(start.tolist(), target.tolist(), strict=True))
    ours = final.to(dtype).requires_grad_()
    loss = trajectory_matching_loss(ours, start.to(dtype), target.to(dtype))
    assert loss.item() == pytest.approx(distance / travelled, rel=tolerance)
    (gradient,) = torch.autograd.grad(loss, ours)
    expected = 2 * (final - target) / travelled
    torch.testing.assert_close(gradient.double(), expected, atol=tolerance, rtol=tolerance)


def test_trajectory_matching_is_relative() -> None:
    start, target = draw(20), draw(20, seed=1)
    assert trajectory_matching_loss(start, start, target).item() == 1
    assert trajectory_matching_loss(target, start, target).item() == 0
    halfway = trajectory_matching_loss((start + target) / 2, start, target)
    assert halfway.item() == pytest.approx(0.25)


def test_trajectory_matching_under_transforms() -> None:
    final, start, target = draw(3, 6), draw(6, seed=1), draw(6, seed=2)

    def loss(x: Tensor) -> Tensor:
        return trajectory_matching_loss(x, start, target)

    assert gradcheck(loss, (final[0].clone().requires_grad_(),))
    assert gradgradcheck(loss, (final[0].clone().requires_grad_(),))
    together = torch.func.vmap(torch.func.grad(loss))(final)
    torch.testing.assert_close(together[1], torch.func.grad(loss)(final[1]))


def test_vectors_must_fit() -> None:
    with pytest.raises(ValueError, match=r"same shape, got \(3,\), \(3,\) and \(1,\)"):
        trajectory_matching_loss(torch.zeros(3), torch.zeros(3), torch.zeros(1))
    with pytest.raises(ValueError, match="same shape"):
        trajectory_matching_loss(torch.zeros(3), torch.zeros(1), torch.zeros(3))
