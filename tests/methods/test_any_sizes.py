"""Whatever the sizes: classes of any balance, images of any shape, any number of each thing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dam_lightning import DC, DM, MTT, CondensedSet, Condenser
from dam_lightning.data import ResidentDataModule, Split
from dam_lightning.functional import DSA
from tests.methods.test_parity import assert_close, reference_inputs
from tests.reference import dm
from tests.tiny import SMALL_NETWORK, tiny_trainer

SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@dataclass(frozen=True)
class Sizes:
    """A dataset, and how it is condensed."""

    classes: list[int]
    """Training images of each."""
    image: tuple[int, int, int]
    batch_real: int
    ipc: int
    num_domains: int
    mask_channels: int | None
    max_images: int


@st.composite
def any_sizes(draw: st.DrawFn) -> Sizes:
    classes = draw(st.lists(st.integers(1, 12), min_size=2, max_size=5))
    image = draw(st.tuples(st.sampled_from([1, 2, 3, 4]), st.integers(8, 17), st.integers(8, 17)))
    return Sizes(
        classes,
        image,
        batch_real=draw(st.integers(1, 9)),
        ipc=draw(st.integers(1, min(4, *classes))),
        num_domains=draw(st.integers(1, min(6, sum(classes)))),
        mask_channels=draw(st.sampled_from([None, 1])),
        max_images=draw(st.integers(1, 25)),
    )


class AnyData(ResidentDataModule):
    """Noise, in one domain."""

    domain_names = ("all",)

    def __init__(self, sizes: Sizes, **options: Any) -> None:
        super().__init__(batch_real=sizes.batch_real, seed=0, steps_per_epoch=2, **options)
        self.class_names = [f"class {number}" for number in range(len(sizes.classes))]
        self.sizes = sizes

    def load_splits(self) -> Mapping[str, Split]:
        draws = np.random.default_rng(0)
        labels = torch.arange(len(self.sizes.classes)).repeat_interleave(
            torch.tensor(self.sizes.classes)
        )
        pixels = draws.integers(0, 256, (len(labels), *self.sizes.image), dtype=np.uint8)
        paths = [str(number) for number in range(len(labels))]
        split = Split(torch.from_numpy(pixels), labels, torch.zeros_like(labels), paths)
        return {"train": split, "test": split}


def make(method: type[Condenser], sizes: Sizes, **options: Any) -> Condenser:
    dam = {"num_domains": sizes.num_domains, "mask_channels": sizes.mask_channels, "init": "normal"}
    more = {"ipc": sizes.ipc, "dam": dam, "backbone_args": SMALL_NETWORK, "seed": 1}
    return method(**{**more, **options})  # type: ignore[arg-type]


def step(module: Condenser, data: AnyData) -> dict[str, torch.Tensor]:
    """The loss of a step, and the gradients of images and masks."""
    module.zero_grad()
    loss = module.training_step(data.grouped_batch(1), 0)
    loss.backward()
    assert module.dam is not None
    images, masks = module.images.grad, module.dam.logits.grad
    assert images is not None
    assert masks is not None
    return {"loss": loss.detach(), "images": images, "masks": masks}


@pytest.fixture(autouse=True)
def float64() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.filterwarnings("ignore:.*self.log.*")
@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
@given(any_sizes())
def test_a_step_of_dm_equals_the_plain_loop(tmp_path: Path, sizes: Sizes) -> None:
    data = AnyData(sizes, cache_dir=str(tmp_path))
    data.setup()
    data.setup_domains(sizes.num_domains)
    shapes = {"num_classes": len(sizes.classes), "image_shape": sizes.image}
    # Of images that are no squares the plain loop turns coordinates, not pixels.
    augmentation = DSA if sizes.image[1] == sizes.image[2] else None
    module = make(DM, sizes, max_images=sizes.max_images, augmentation=augmentation, **shapes)
    assert isinstance(module, DM)
    found = step(module, data)
    assert module.dam is not None
    expected = dm.dm_step(
        module.images,
        sizes.ipc,
        module.dam.logits,
        0.1,
        0.1,
        *reference_inputs(module, data.grouped_batch(1)),
    )
    assert_close(found["loss"], expected.loss_class + 0.1 * expected.loss_domain)
    assert_close(found["images"], expected.grad_images)
    assert expected.grad_logits is not None
    assert_close(found["masks"], expected.grad_logits)


@pytest.mark.filterwarnings("ignore:.*self.log.*")
@settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
@given(any_sizes())
def test_a_step_of_dc_in_pieces_is_the_step(tmp_path: Path, sizes: Sizes) -> None:
    data = AnyData(sizes, cache_dir=str(tmp_path))
    data.setup()
    data.setup_domains(sizes.num_domains)
    shapes = {"num_classes": len(sizes.classes), "image_shape": sizes.image}
    loops = {"outer_loop": 1, "inner_loop": 1}
    whole, pieces = (
        step(make(DC, sizes, max_images=most, **shapes, **loops), data)
        for most in (4096, sizes.max_images)
    )
    for name, value in whole.items():
        assert_close(pieces[name], value)


@pytest.mark.parametrize("method", [DM, DC, MTT])
@settings(max_examples=5, deadline=None, suppress_health_check=SLOW)
@given(any_sizes())
def test_a_fit(
    tmp_path_factory: pytest.TempPathFactory, method: type[Condenser], sizes: Sizes
) -> None:
    """Images, masks and the condensed set have the sizes that were asked for, and are finite."""
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("fit")
    options: dict[str, Any] = {
        DM: {},
        DC: {"outer_loop": 2, "inner_loop": 1},
        MTT: {
            **{"student_steps": 2, "expert_epochs": 1, "max_start_epoch": 1},
            "experts": {"count": 1},
        },
    }[method]
    module = make(method, sizes, max_images=sizes.max_images, **options)
    tiny_trainer(folder, max_steps=3).fit(
        module, datamodule=AnyData(sizes, cache_dir=str(folder / "cache"))
    )
    count = len(sizes.classes) * sizes.ipc
    assert module.images.shape == (count, *sizes.image)
    assert module.dam is not None
    channels = sizes.mask_channels or sizes.image[0]
    assert module.dam.logits.shape == (count, sizes.num_domains, channels, *sizes.image[1:])
    assert bool(module.dam.logits.isfinite().all())
    found = CondensedSet.load(folder / "condensed.safetensors")
    assert torch.equal(found.images, module.images.detach())
    assert bool(found.images.isfinite().all())
    assert found.labels.bincount().tolist() == [sizes.ipc] * len(sizes.classes)
