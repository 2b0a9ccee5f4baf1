"""Normalisation by channels and by whitening, and the data module's ``zca``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dam_lightning.data import Split, random_images
from dam_lightning.data import base as base_module
from dam_lightning.data.normalisation import Normalisation
from dam_lightning.functional import Whitening, zca_matrix
from tests.tiny import TinyData, tiny_data

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def some_pixels(*leading: int) -> Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (*leading, 3, 4, 5), dtype=np.uint8)
    return torch.from_numpy(pixels)


def a_whitening() -> Whitening:
    mean, matrix = zca_matrix(some_pixels(30))
    return Whitening(mean.float(), matrix.float())


def whitened(split: Split, data: TinyData) -> Tensor:
    """In float64, from scratch."""
    mean, matrix = zca_matrix(data.train.images)
    return ((split.images.flatten(1).double() / 255 - mean) @ matrix).view(split.images.shape)


def spy_on_fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    fits = []

    def spy(images: Tensor) -> tuple[Tensor, Tensor]:
        fits.append(len(images))
        return zca_matrix(images)

    monkeypatch.setattr(base_module, "zca_matrix", spy)
    return fits


@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (0,)])
def test_channels_are_normalised(leading: tuple[int, ...]) -> None:
    pixels = some_pixels(*leading)
    before = pixels.clone()
    found = Normalisation(MEAN, STD)(pixels)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    assert found.dtype == torch.float32
    assert torch.equal(found, (pixels.float() / 255 - mean) / std)  # to the bit
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (0,)])
def test_images_are_whitened(leading: tuple[int, ...]) -> None:
    pixels, whitening = some_pixels(*leading), a_whitening()
    found = Normalisation(MEAN, STD, whitening)(pixels)
    assert found.dtype == torch.float32
    assert found.shape == pixels.shape
    flat = pixels.reshape(-1, 60).double() / 255
    expected = (flat - whitening.mean.double()) @ whitening.matrix.double()
    torch.testing.assert_close(found.view(-1, 60).double(), expected, rtol=0, atol=1e-5)


def test_what_is_float_already_is_left_as_it_was() -> None:
    pixels = some_pixels(2).float()
    Normalisation(MEAN, STD)(pixels)
    assert torch.equal(pixels, some_pixels(2).float())


def test_without_zca_there_is_no_whitening(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    assert data.hparams["zca"] is False
    assert data.whitening is None
    assert (data.mean, data.std) == (MEAN, STD)


def test_training_images_are_whitened(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, zca=True)
    assert data.hparams["zca"] is True
    assert data.whitening is not None
    assert [part.dtype for part in data.whitening] == [torch.float32] * 2
    assert [part.shape for part in data.whitening] == [(768,), (768, 768)]
    assert (data.mean, data.std) == ((0.0,) * 3, (1.0,) * 3)
    assert TinyData.mean == MEAN  # of the class: another data module's
    data.setup_domains(2)
    batch = data.grouped_batch(3)
    expected = whitened(data.train, data)
    for groups in (batch.classes, batch.domains):
        assert groups is not None
        images = groups.images([1, 0]).double()
        torch.testing.assert_close(images, expected[groups.indices[[1, 0]]], rtol=0, atol=1e-4)


def test_test_and_validation_batches_are_whitened(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, zca=True, validation_share=0.25, test_batch_size=5)
    assert data.val is not None
    # Fitted to the images that are left for training, and to no others.
    for split, loader in ((data.test, data.test_dataloader()), (data.val, data.val_dataloader())):
        images = torch.cat([batch[0] for batch in loader]).double()
        torch.testing.assert_close(images, whitened(split, data), rtol=0, atol=1e-4)


def test_random_images_are_whitened(tmp_path: Path) -> None:
    plain, data = tiny_data(tmp_path), tiny_data(tmp_path, zca=True)
    pixels = random_images(plain, 3, 0, "s")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = data.normalisation((255 * (pixels * std + mean)).round().byte())
    torch.testing.assert_close(random_images(data, 3, 0, "s"), expected, rtol=0, atol=1e-5)


def test_random_images_of_a_data_module_that_knows_no_whitening(tmp_path: Path) -> None:
    class Foreign:
        """What is documented, and no more."""

        def __init__(self, inner: TinyData) -> None:
            self.train, self.class_names = inner.train, inner.class_names
            self.mean, self.std = np.float32(inner.mean), np.float32(inner.std)

    data = tiny_data(tmp_path)
    assert torch.equal(random_images(Foreign(data), 3, 0, "s"), random_images(data, 3, 0, "s"))


def test_pseudo_domains_are_made_of_raw_images(tmp_path: Path) -> None:
    plain, data = tiny_data(tmp_path / "plain"), tiny_data(tmp_path / "zca", zca=True)
    for module in (plain, data):
        module.setup_domains(3)
    assert torch.equal(data.pseudo_domain_scores, plain.pseudo_domain_scores)
    assert data.pseudo_domains is not None
    assert plain.pseudo_domains is not None
    assert torch.equal(data.pseudo_domains, plain.pseudo_domains)


def test_the_second_run_finds_the_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = spy_on_fits(monkeypatch)
    first, second = tiny_data(tmp_path, zca=True), tiny_data(tmp_path, zca=True)
    assert fits == [33]
    assert first.whitening is not None
    assert second.whitening is not None
    for ours, theirs in zip(first.whitening, second.whitening, strict=True):
        assert torch.equal(ours, theirs)
    (file,) = (tmp_path / "cache").glob("zca-*.safetensors")
    file.write_bytes(file.read_bytes()[:-9])  # a damaged file is made again
    tiny_data(tmp_path, zca=True)
    assert fits == [33, 33]


def test_other_training_images_have_another_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Changed(TinyData):
        def load_splits(self) -> Mapping[str, Split]:
            splits = super().load_splits()
            splits["train"].images[0, 0, 0, 0] ^= 255
            return splits

    def matrix(data: TinyData) -> Tensor:
        data.setup()
        assert data.whitening is not None
        return data.whitening.matrix

    fits = spy_on_fits(monkeypatch)
    options: dict[str, Any] = {"cache_dir": str(tmp_path), "zca": True}
    original = matrix(TinyData(**options))
    assert not torch.equal(matrix(Changed(**options)), original)
    assert not torch.equal(matrix(TinyData(**options, validation_share=0.25)), original)
    assert fits == [33, 33, 25]


def test_another_device_gets_the_same_whitening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = spy_on_fits(monkeypatch)
    data = tiny_data(tmp_path, zca=True)
    whitening = data.whitening

    class Elsewhere:
        class strategy:
            root_device = torch.device("meta")

    monkeypatch.setattr(data, "trainer", Elsewhere)
    data.setup()
    assert data.normalisation.device.type == "meta"
    assert data.normalisation._whitening is not None
    assert [part.device.type for part in data.normalisation._whitening] == ["meta"] * 2
    assert data.whitening is whitening
    assert (data.mean, data.std) == ((0.0,) * 3, (1.0,) * 3)
    assert fits == [33]


@pytest.mark.parametrize(("side", "refused"), [(32, False), (33, True)])
def test_large_images_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, refused: bool
) -> None:
    class Large(TinyData):
        def load_splits(self) -> Mapping[str, Split]:
            return {
                name: Split(
                    split.images.new_zeros(len(split), 3, 32, side),
                    split.labels,
                    split.domains,
                    split.paths,
                )
                for name, split in super().load_splits().items()
            }

    # Not fitted: 3,072 dimensions take a while.
    monkeypatch.setattr(base_module, "zca_matrix", lambda _: (torch.zeros(1), torch.ones(1, 1)))
    data = Large(zca=True, cache_dir=str(tmp_path))
    if refused:
        message = r"3 x 32 x 33 = 3168 values cannot be whitened, the limit is 3072: set zca to f"
        with pytest.raises(ValueError, match=message):
            data.setup()
    else:
        data.setup()
    Large(cache_dir=str(tmp_path)).setup()
