"""The Domain-Aware Module by itself."""

import inspect
import math

import pytest
import torch

from dam_lightning import DomainAwareModule
from dam_lightning.functional import distribution_matching_loss, domain_views, domain_weights
from dam_lightning.randomness import seeded


def pictures(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_defaults_are_the_papers() -> None:
    parameters = inspect.signature(DomainAwareModule).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    assert defaults == {
        "num_domains": 4,
        "temperature": 0.1,
        "init_value": 0.01,
        "init": "constant",
        "mask_channels": None,
        "weight": 0.1,
    }


def test_masks_start_uniform() -> None:
    dam = DomainAwareModule(6, (3, 5, 4), num_domains=5)
    assert dam.logits.shape == (6, 5, 3, 5, 4)
    assert torch.equal(dam.logits, torch.full_like(dam.logits, 0.01))
    torch.testing.assert_close(
        domain_weights(dam.logits, dam.temperature), torch.full_like(dam.logits, 0.2)
    )


def test_masks_are_the_only_state() -> None:
    dam = DomainAwareModule(2, (3, 4, 4), weight=0.5)
    assert [name for name, _ in dam.named_parameters()] == ["logits"]
    assert list(dam.state_dict()) == ["logits"]
    assert dam.logits.requires_grad
    assert dam.weight == 0.5


def test_views_are_those_of_the_formula() -> None:
    dam = DomainAwareModule(3, (3, 5, 4), num_domains=2, temperature=0.7, init="normal")
    images = pictures(3, 3, 5, 4)
    views = dam(images)
    assert views.shape == (2, 3, 3, 5, 4)
    assert torch.equal(views, domain_views(images, dam.logits, 0.7))
    torch.testing.assert_close(views.sum(dim=0), images)


def test_one_domain_sees_the_images() -> None:
    images = pictures(3, 3, 5, 4)
    dam = DomainAwareModule(3, (3, 5, 4), num_domains=1, init="normal", init_value=3.0)
    assert torch.equal(dam(images), images.unsqueeze(0))


def test_normal_masks_have_the_deviation_asked_for_and_follow_the_seed() -> None:
    drawn = []
    for group in (0, 0, 1):
        with seeded("cpu", 0, "masks", 0, group):
            drawn.append(DomainAwareModule(8, (3, 16, 16), init="normal", init_value=0.05).logits)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert abs(drawn[0].std().item() - 0.05) < 0.001
    assert abs(drawn[0].mean().item()) < 0.001
    # Peaked from the start, unlike constant ones.
    assert domain_weights(drawn[0]).max() > 0.4


def test_constant_masks_draw_nothing() -> None:
    before = torch.get_rng_state()
    DomainAwareModule(2, (3, 4, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_masks_of_one_channel() -> None:
    images = pictures(2, 3, 4, 4)
    dam = DomainAwareModule(2, (3, 4, 4), mask_channels=1, init="normal")
    assert dam.logits.shape == (2, 4, 1, 4, 4)
    ratio = dam(images) / images
    torch.testing.assert_close(ratio[:, :, 0], ratio[:, :, 1])
    assert DomainAwareModule(2, (3, 4, 4), mask_channels=3).logits.shape == (2, 4, 3, 4, 4)
    assert DomainAwareModule(2, (1, 4, 4)).logits.shape == (2, 4, 1, 4, 4)


def test_use_in_a_loop_of_ones_own() -> None:
    """The class loss moves the images alone, the domain loss images and masks."""
    images = torch.nn.Parameter(pictures(4, 3, 4, 4))
    dam = DomainAwareModule(4, (3, 4, 4), num_domains=3)
    real = pictures(3, 6, 48) + torch.arange(3.0).view(3, 1, 1)
    optimizer = torch.optim.SGD([images, *dam.parameters()], lr=0.1)
    losses = []
    for _ in range(5):
        class_loss = images.square().sum()
        masks_gradient = torch.autograd.grad(class_loss, dam.logits, allow_unused=True)
        assert masks_gradient == (None,)
        domain_loss = distribution_matching_loss(real, dam(images).flatten(2))
        optimizer.zero_grad()
        (dam.weight * domain_loss).backward()
        optimizer.step()
        losses.append(domain_loss.item())
    assert losses == sorted(losses, reverse=True)
    assert not torch.equal(dam.logits, torch.full_like(dam.logits, 0.01))


def test_it_moves_and_loads_like_any_module() -> None:
    dam = DomainAwareModule(2, (3, 4, 4), init="normal")
    other = DomainAwareModule(2, (3, 4, 4))
    other.load_state_dict(dam.state_dict())
    assert torch.equal(other.logits, dam.logits)
    assert dam.double()(pictures(2, 3, 4, 4).double()).dtype == torch.float64


def test_images_of_another_number_or_size_are_refused() -> None:
    dam = DomainAwareModule(2, (3, 4, 4))
    for shape in ((1, 3, 4, 4), (2, 3, 8, 8), (2, 1, 4, 4)):
        with pytest.raises(ValueError, match="same M, H and W"):
            dam(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"num_domains": 0}, "num_domains must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": math.nan}, "temperature must be above 0"),
        ({"weight": -0.1}, "weight must be 0 or above, got -0.1"),
        ({"weight": math.nan}, "weight must be 0 or above"),
        ({"init": "uniform"}, "init must be constant or normal, got 'uniform'"),
        ({"mask_channels": 2}, "mask_channels must be 1 or 3, got 2"),
        ({"mask_channels": 0}, "mask_channels must be 1 or 3, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DomainAwareModule(**{"num_images": 2, "image_shape": (3, 4, 4), **options})
