"""DM equals the plain loop of tests/reference, whatever shape its work takes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dam_lightning import DM
from dam_lightning.backbones import ConvNet
from dam_lightning.data import GroupedBatch
from dam_lightning.functional import DSA, OPERATIONS
from dam_lightning.randomness import numpy_generator
from tests.reference import convnet, dm
from tests.tiny import CLASS_SIZES, SMALL_NETWORK, tiny_data, tiny_trainer

NUM_DOMAINS = 3
SHAPE = (3, 16, 16)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def reference_inputs(module: DM, batch: GroupedBatch) -> dm.StepInputs:
    """What the module draws for a step, as the reference takes it."""
    library = module.fresh_network(batch.step)
    channels, *size = module.images.shape[1:]
    plain = convnet.ConvNet(
        channels, len(batch.classes.counts), SMALL_NETWORK["width"], 2, tuple(size)
    )
    convnet.copy_parameters(library, plain)

    def valid(groups: Any) -> list[Tensor]:
        images = groups.images(range(len(groups.counts))).to(torch.get_default_dtype())
        return [group[:count] for group, count in zip(images, groups.counts, strict=True)]

    def drawn(branch: str, count: int) -> list[dm.Augmentation] | None:
        if module.augmentation is None or (branch == "domain" and not module.augment_views):
            return None
        result = []
        for group in range(count):
            generator = numpy_generator(module.seed, f"augmentation/{branch}", batch.step, group)
            operation = OPERATIONS[int(generator.choice(len(OPERATIONS)))]
            result.append((operation, generator.random(3).tolist()))
        return result

    with_domains = module.dam is not None
    return dm.StepInputs(
        network_features=plain.embed,
        real_class_batches=valid(batch.classes),
        real_domain_batches=valid(batch.domains) if with_domains else None,
        class_augmentation=drawn("class", len(batch.classes.counts)),
        domain_augmentation=drawn("domain", len(batch.domains.counts)) if with_domains else None,
    )


def make(**options: Any) -> DM:
    if torch.get_default_dtype() == torch.float32:
        options = {"precision": "float32", **options}
    options = {"num_classes": len(CLASS_SIZES), "image_shape": SHAPE, **options}
    return DM(backbone_args=SMALL_NETWORK, seed=3, **options)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    tolerance = TOLERANCE[ours.dtype]
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(1.0, scale))


@pytest.mark.filterwarnings("ignore:.*self.log.*")
@pytest.mark.parametrize("augmentation", [None, DSA], ids=["plain", "augmented"])
@pytest.mark.parametrize("dam", [None, {"num_domains": NUM_DOMAINS, "init": "normal"}])
@pytest.mark.parametrize("max_images", [1, 7, 4096])
@pytest.mark.parametrize("ipc", [1, 3])
def test_one_step(
    tmp_path: Path,
    dtype: torch.dtype,
    augmentation: str | None,
    dam: Any,
    max_images: int,
    ipc: int,
) -> None:
    data = tiny_data(tmp_path)
    data.setup_domains(NUM_DOMAINS)
    module = make(ipc=ipc, dam=dam, augmentation=augmentation, max_images=max_images)
    for step in (0, 1, 2, 5):
        batch = data.grouped_batch(step)
        loss = module.training_step(batch, 0)
        module.zero_grad()
        loss.backward()
        expected = dm.dm_step(
            module.images,
            ipc,
            None if module.dam is None else module.dam.logits,
            0.1,
            0.1,
            *reference_inputs(module, batch),
        )
        assert_close(loss.detach(), expected.loss_class + 0.1 * expected.loss_domain)
        assert module.images.grad is not None
        assert_close(module.images.grad, expected.grad_images)
        if module.dam is not None:
            assert module.dam.logits.grad is not None
            assert expected.grad_logits is not None
            assert float(expected.grad_logits.abs().max()) > 0
            assert_close(module.dam.logits.grad, expected.grad_logits)


@pytest.mark.filterwarnings("ignore:.*self.log.*")
def test_views_that_are_not_augmented(tmp_path: Path) -> None:
    """The class loss is the same, and the domain loss that of images as they are."""
    data = tiny_data(tmp_path)
    data.setup_domains(NUM_DOMAINS)
    batch, losses = data.grouped_batch(3), []
    for augment_views in (True, False):
        module = make(dam={"num_domains": NUM_DOMAINS, "weight": 1}, augment_views=augment_views)
        losses.append(module.training_step(batch, 0).detach())
        inputs = reference_inputs(module, batch)
        expected = dm.dm_step(module.images, 1, module.dam.logits, 0.1, 1, *inputs)
        assert_close(losses[-1], expected.loss_class + expected.loss_domain)
    assert not torch.isclose(*losses)


@pytest.mark.filterwarnings("ignore:.*self.log.*")
def test_one_compiled_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next step draws another network, for which nothing is compiled again."""
    monkeypatch.setattr("dam_lightning.compilation.rank_zero_warn", pytest.fail)
    data = tiny_data(tmp_path)
    data.setup_domains(NUM_DOMAINS)
    module = make(ipc=2, dam={"num_domains": NUM_DOMAINS}, compile=True)
    for step in range(2):
        batch = data.grouped_batch(step)
        loss = module.training_step(batch, 0)
        module.zero_grad()
        loss.backward()
        inputs = reference_inputs(module, batch)
        expected = dm.dm_step(module.images, 2, module.dam.logits, 0.1, 0.1, *inputs)
        assert_close(loss.detach(), expected.loss_class + 0.1 * expected.loss_domain)
        assert_close(module.images.grad, expected.grad_images)
        assert_close(module.dam.logits.grad, expected.grad_logits)


class Projected(ConvNet):
    """What it draws is not all in parameters."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_buffer("factors", torch.rand(self.feature_dim))

    def features(self, images: Tensor) -> Tensor:
        return super().features(images) * self.factors


@pytest.mark.filterwarnings("ignore:.*self.log.*")
def test_a_compiled_step_has_the_buffers_of_its_own_network(tmp_path: Path) -> None:
    batch, losses = tiny_data(tmp_path).grouped_batch(1), []
    for compile in (False, True):
        module = make(ipc=1, backbone=f"{__name__}.Projected", compile=compile)
        module.network_state(0)
        losses.append(module.training_step(batch, 0).detach())
    assert_close(losses[1], losses[0])


@pytest.mark.parametrize("dam", [None, {"num_domains": NUM_DOMAINS}])
@pytest.mark.parametrize("max_images", [5, 4096])
def test_several_steps_through_the_trainer(tmp_path: Path, dam: Any, max_images: int) -> None:
    """Optimiser, loader and Trainer included: six steps over an end of an epoch."""
    data = tiny_data(tmp_path, seed=5)
    data.setup_domains(NUM_DOMAINS)
    module = make(ipc=2, dam=dam, max_images=max_images, lr_images=0.3, lr_masks=0.7)
    inputs = [reference_inputs(module, data.grouped_batch(step)) for step in range(6)]
    expected = dm.dm_loop(
        module.images.detach().clone(),
        2,
        None if module.dam is None else module.dam.logits.detach().clone(),
        0.1,
        0.1,
        inputs,
        lr_images=0.3,
        lr_masks=0.7,
    )
    start = module.images.detach().clone()
    tiny_trainer(tmp_path, max_steps=6).fit(module, datamodule=data)
    assert float((module.images - start).abs().max()) > 0.1
    assert_close(module.images.detach(), expected.images)
    if module.dam is not None:
        assert expected.logits is not None
        assert_close(module.dam.logits.detach(), expected.logits)


def test_the_class_loss_does_not_touch_the_masks(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    module = make(dam={})
    batch = data.grouped_batch(0)
    by_class = module.images.view(len(CLASS_SIZES), 1, *SHAPE)
    state = module.network_state(0)
    loss = module.grouping_loss("class", batch, by_class, state)
    loss.backward()
    assert module.images.grad is not None
    assert module.dam is not None
    assert module.dam.logits.grad is None


def test_activations_stay_within_the_budget(tmp_path: Path) -> None:
    """No forward pass takes more images than max_images, even where one group alone has more."""
    data = tiny_data(tmp_path)
    data.setup_domains(NUM_DOMAINS)
    module = make(ipc=4, dam={"num_domains": NUM_DOMAINS}, max_images=5)
    sizes: list[int] = []
    original: Callable[[int], Any] = module.network_state

    def counting(step: int) -> Any:
        network = original(step)
        network.register_forward_hook(lambda *_: None)
        network.blocks.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
        return network

    module.network_state = counting  # type: ignore[method-assign]
    module.training_step(data.grouped_batch(0), 0)
    assert max(sizes) == 5
