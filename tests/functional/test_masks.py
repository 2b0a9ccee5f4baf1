"""Equations 1 to 3."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from dam_lightning.functional import domain_views, domain_weights
from tests.reference import dm

few = settings(max_examples=25, deadline=None, derandomize=True)
shapes = st.tuples(
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)
)


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@few
@given(shapes, st.sampled_from([0.01, 0.1, 1.0, 5.0]), st.floats(0.001, 10), st.integers(0, 99))
def test_weights_are_positive_and_sum_to_one(
    shape: tuple[int, ...], temperature: float, spread: float, seed: int
) -> None:
    logits = pictures(*shape, seed=seed) * spread
    weights = domain_weights(logits, temperature)
    assert weights.shape == logits.shape
    assert bool((weights >= 0).all())
    assert torch.allclose(weights.sum(dim=1), torch.ones((), dtype=weights.dtype), atol=1e-12)


@few
@given(shapes, st.sampled_from([0.05, 0.1, 1.0]), st.booleans(), st.integers(0, 99))
def test_views_add_up_to_the_images(
    shape: tuple[int, ...], temperature: float, shared: bool, seed: int
) -> None:
    num_images, num_domains, channels, height, width = shape
    images = pictures(num_images, channels, height, width, seed=seed)
    logits = pictures(num_images, num_domains, 1 if shared else channels, height, width, seed=seed)
    views = domain_views(images, logits, temperature)
    assert views.shape == (num_domains, *images.shape)
    assert torch.allclose(views.sum(dim=0), images, atol=1e-12)


@few
@given(shapes, st.integers(0, 99), st.floats(-100, 100))
def test_weights_do_not_change_when_all_logits_are_shifted(
    shape: tuple[int, ...], seed: int, shift: float
) -> None:
    logits = pictures(*shape, seed=seed)
    assert torch.allclose(domain_weights(logits), domain_weights(logits + shift), atol=1e-10)


def test_weights_are_the_softmax_written_out() -> None:
    logits = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64).view(1, 3, 1, 1, 1)
    exponentials = [math.exp(z / 0.5) for z in (0.1, -0.2, 0.3)]
    expected = [e / sum(exponentials) for e in exponentials]
    assert domain_weights(logits, 0.5).flatten().tolist() == pytest.approx(expected, abs=1e-15)


def test_the_default_temperature_is_the_papers() -> None:
    images, logits = pictures(2, 3, 4, 4), pictures(2, 3, 3, 4, 4)
    assert torch.equal(domain_weights(logits), domain_weights(logits, 0.1))
    assert torch.equal(domain_views(images, logits), domain_views(images, logits, 0.1))
    assert not torch.allclose(domain_weights(logits), domain_weights(logits, 0.2))


@pytest.mark.parametrize("value", [0.001, 0.01, 0.1, 1.0])
def test_constant_logits_weigh_all_domains_alike(value: float) -> None:
    weights = domain_weights(torch.full((2, 4, 3, 2, 2), value))
    assert torch.equal(weights, torch.full_like(weights, 0.25))


def test_one_domain_sees_the_images_themselves() -> None:
    for dtype in (torch.float32, torch.float64):
        images, logits = pictures(2, 3, 4, 5, dtype=dtype), pictures(2, 1, 3, 4, 5, dtype=dtype)
        assert torch.equal(domain_views(images, logits)[0], images)


def test_a_mask_of_one_channel_is_shared_by_all() -> None:
    images, logits = pictures(2, 3, 4, 5), pictures(2, 4, 1, 4, 5)
    expanded = logits.expand(-1, -1, 3, -1, -1)
    found = domain_views(images, logits)
    assert torch.allclose(found, domain_views(images, expanded), rtol=1e-12, atol=1e-15)


def test_domains_can_be_renumbered() -> None:
    images, logits, order = pictures(2, 3, 4, 5), pictures(2, 4, 3, 4, 5), [2, 0, 3, 1]
    renumbered = domain_views(images, logits[:, order])
    assert torch.allclose(renumbered, domain_views(images, logits)[order], atol=1e-15)


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([1e6, -1e6, 1e6]).view(1, 3, 1, 1, 1).requires_grad_()
    weights = domain_weights(logits)
    weights[0, 0].sum().backward()
    assert weights.flatten().tolist() == [0.5, 0.0, 0.5]
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_domains", [1, 4])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["64", "32"]
)
def test_parity_with_the_plain_loop(
    channels: int, num_domains: int, dtype: torch.dtype, tolerance: float
) -> None:
    images = pictures(3, 3, 5, 4)
    logits = pictures(3, num_domains, channels, 5, 4) * 0.1
    towards = pictures(num_domains, 3, 3, 5, 4, seed=1)
    results = []
    for as_type, views in (
        (torch.float64, lambda x, z: torch.stack(dm.domain_views(x, z, 0.1))),
        (dtype, lambda x, z: domain_views(x, z, 0.1)),
    ):
        x, z = (t.to(as_type, copy=True).requires_grad_() for t in (images, logits))
        seen = views(x, z)
        gradients = torch.autograd.grad((seen * towards.to(as_type)).sum(), [x, z])
        results.append([t.double() for t in (seen, *gradients)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_the_sum_of_the_views_does_not_depend_on_the_masks() -> None:
    images, logits = pictures(2, 3, 4, 4), pictures(2, 4, 3, 4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(
        domain_views(images, logits).sum(dim=0).square().sum(), logits
    )
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("channels", [1, 2])
def test_gradients_of_both_orders(channels: int) -> None:
    images = pictures(2, 2, 2, 3).requires_grad_()
    logits = (pictures(2, 3, channels, 2, 3) * 0.1).requires_grad_()
    assert gradcheck(domain_views, (images, logits))
    assert gradgradcheck(domain_views, (images, logits))


def test_function_transforms() -> None:
    images, logits = pictures(5, 2, 3, 4, 4), pictures(5, 2, 4, 3, 4, 4)
    towards = pictures(4, 1, 1, 1, 1)

    def loss(x: Tensor, z: Tensor) -> Tensor:
        return (domain_views(x, z) * towards).square().sum()

    together = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(images, logits)
    for n in range(5):
        x, z = images[n].clone().requires_grad_(), logits[n].clone().requires_grad_()
        alone = torch.autograd.grad(loss(x, z), [x, z])
        assert torch.allclose(together[0][n], alone[0])
        assert torch.allclose(together[1][n], alone[1])


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        domain_weights(torch.zeros(1, 2, 3, 4, 4), temperature)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        domain_views(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 3, 4, 4), temperature)


def test_logits_must_have_five_dimensions() -> None:
    with pytest.raises(ValueError, match=r"\(M, D, C, H, W\), got shape \(2, 3, 4, 4\)"):
        domain_weights(torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("images", "logits"),
    [
        ((2, 3, 4, 4), (1, 4, 3, 4, 4)),  # one mask for two images
        ((2, 3, 4, 4), (2, 4, 2, 4, 4)),  # two channels for three
        ((2, 1, 4, 4), (2, 4, 3, 4, 4)),  # three channels for one
        ((2, 3, 4, 4), (2, 4, 3, 1, 4)),
        ((2, 3, 4, 4), (2, 4, 3, 4, 1)),
        ((3, 4, 4), (3, 4, 1, 4, 4)),
    ],
)
def test_shapes_must_fit(images: tuple[int, ...], logits: tuple[int, ...]) -> None:
    """Nothing is broadcast by accident."""
    with pytest.raises(ValueError, match="with the same M, H and W"):
        domain_views(torch.zeros(images), torch.zeros(logits))
