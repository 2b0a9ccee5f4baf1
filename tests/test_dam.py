"""The Domain-Aware Module by itself."""

import inspect
import math
from pathlib import Path

import pytest
import torch

from dam_lightning import DM, DomainAwareModule
from dam_lightning.functional import distribution_matching_loss, domain_views, domain_weights
from dam_lightning.randomness import seeded
from tests.tiny import SMALL_NETWORK, tiny_data, tiny_trainer


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


def owners(dam: DomainAwareModule) -> list[int]:
    """The domain of each image, which must have all of it, and the others nothing."""
    weights = domain_weights(dam.logits.detach(), dam.temperature).flatten(2)
    assert ((weights == 0) | (weights == 1)).all()
    assert (weights == weights[:, :, :1]).all()
    assert (weights.sum(dim=1) == 1).all()
    return weights[:, :, 0].argmax(dim=1).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 5.0])
def test_one_hot_masks_are_exactly_so(dtype: torch.dtype, temperature: float) -> None:
    dam = DomainAwareModule(
        6, (3, 4, 4), num_domains=3, temperature=temperature, init="one_hot"
    ).to(dtype)
    domains = owners(dam)
    images = pictures(6, 3, 4, 4).to(dtype)
    views = dam(images)
    for image, domain in enumerate(domains):
        assert torch.equal(views[domain, image], images[image])
    assert torch.equal(views.sum(dim=0), images)


@pytest.mark.parametrize(("count", "num_domains"), [(12, 4), (10, 4), (7, 4), (3, 5), (4, 1)])
def test_one_hot_domains_are_shared_out_equally(count: int, num_domains: int) -> None:
    domains = owners(DomainAwareModule(count, (1, 2, 2), num_domains, init="one_hot"))
    sizes = [domains.count(domain) for domain in range(num_domains)]
    assert max(sizes) - min(sizes) <= 1
    for start in range(0, count - num_domains + 1, num_domains):
        assert sorted(domains[start : start + num_domains]) == list(range(num_domains))


def test_one_hot_domains_follow_the_seed() -> None:
    drawn = []
    for group in (0, 0, 1):
        with seeded("cpu", 0, "masks", 0, group):
            drawn.append(owners(DomainAwareModule(40, (1, 2, 2), init="one_hot")))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    # Not the same order again and again.
    assert len({tuple(drawn[0][start : start + 4]) for start in range(0, 40, 4)}) > 1


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"momentum": 0.5, "weight_decay": 5e-4}])
def test_nothing_moves_one_hot_masks(options: dict[str, float]) -> None:
    images = torch.nn.Parameter(pictures(4, 3, 4, 4))
    dam = DomainAwareModule(4, (3, 4, 4), init="one_hot")
    before, domains = dam.logits.detach().clone(), owners(dam)
    optimizer = torch.optim.SGD([images, *dam.parameters()], lr=0.5, **options)
    for _ in range(5):
        optimizer.zero_grad()
        dam(images).square().flatten(1).mul(pictures(4, 192)).sum().backward()
        assert torch.equal(dam.logits.grad, torch.zeros_like(dam.logits))
        assert images.grad.abs().max() > 0
        optimizer.step()
    # Weight decay takes its share of the logits, but the masks stay where they are.
    assert torch.equal(dam.logits, before) == ("weight_decay" not in options)
    assert owners(dam) == domains


def test_a_condenser_does_not_learn_one_hot_masks(tmp_path: Path) -> None:
    def fitted(steps: int) -> DM:
        module = DM(dam={"init": "one_hot"}, ipc=2, backbone_args=SMALL_NETWORK, seed=0)
        data = tiny_data(tmp_path, pseudo_labels="random")
        tiny_trainer(tmp_path, max_steps=steps, callbacks=[]).fit(module, datamodule=data)
        return module

    first, last = fitted(1), fitted(4)
    assert torch.equal(first.dam.logits, last.dam.logits)
    assert len(set(owners(last.dam))) == 4
    assert not torch.equal(first.images, last.images)


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
        ({"init": "uniform"}, "init must be constant, normal or one_hot, got 'uniform'"),
        ({"mask_channels": 2}, "mask_channels must be 1 or 3, got 2"),
        ({"mask_channels": 0}, "mask_channels must be 1 or 3, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DomainAwareModule(**{"num_images": 2, "image_shape": (3, 4, 4), **options})
