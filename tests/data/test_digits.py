"""The handwritten digits: split before they are drawn, repeatable, clearly different styles."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dam_lightning.data.digits import STYLES, Digits, render_digits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    made = Digits(batch_real=8, cache_dir=str(tmp_path_factory.mktemp("cache")))
    made.prepare_data()
    made.setup()
    made.setup_domains(4)
    return made


def digit_numbers(paths: list[str]) -> set[int]:
    return {int(path.rsplit("/", 1)[1]) for path in paths}


def test_sizes_and_types(data: Digits) -> None:
    assert (len(data.train), len(data.test)) == (4 * 1438, 4 * 359)
    assert (data.num_classes, data.image_shape) == (10, (3, 32, 32))
    assert tuple(data.domain_names) == STYLES
    for split in (data.train, data.test):
        assert split.images.dtype == torch.uint8
        assert split.domains.bincount().tolist() == [len(split) // 4] * 4
        for n in (0, len(split) // 2, len(split) - 1):
            style, label, _ = split.paths[n].split("/")
            assert data.domain_names[split.domains[n]] == style
            assert data.class_names[split.labels[n]] == label


def test_labels_are_those_of_the_handwritten_digits(data: Digits) -> None:
    target = load_digits().target
    for split in (data.train, data.test):
        numbers = [int(path.rsplit("/", 1)[1]) for path in split.paths]
        assert np.array_equal(split.labels.numpy(), target[numbers])


def test_no_handwritten_digit_is_in_both_parts(data: Digits) -> None:
    train, test = digit_numbers(data.train.paths), digit_numbers(data.test.paths)
    assert not train & test
    assert train | test == set(range(1797))
    # A fifth of every class, in every style.
    shares = data.test.labels.bincount() / (
        data.test.labels.bincount() + data.train.labels.bincount()
    )
    assert torch.allclose(shares, torch.tensor(0.2), atol=0.003)


def test_another_split_seed_moves_digits_but_draws_them_alike(data: Digits, tmp_path: Path) -> None:
    other = Digits(split_seed=1, cache_dir=str(tmp_path))
    other.setup()
    assert digit_numbers(other.test.paths) != digit_numbers(data.test.paths)
    ours = {path: n for n, path in enumerate(data.train.paths)}
    shared = [(n, ours[path]) for n, path in enumerate(other.train.paths) if path in ours]
    theirs, here = (list(column) for column in zip(*shared, strict=True))
    assert torch.equal(other.train.images[theirs], data.train.images[here])


def test_rendering_depends_on_nothing_but_its_seed(data: Digits) -> None:
    digits = load_digits().images
    state = torch.random.get_rng_state()
    first = render_digits(digits, "neon")
    torch.manual_seed(1)
    assert np.array_equal(first, render_digits(digits, "neon"))
    torch.random.set_rng_state(state)
    assert not np.array_equal(first, render_digits(digits, "neon", seed=1))
    number = data.train.paths.index(next(p for p in data.train.paths if p.startswith("neon/")))
    digit = int(data.train.paths[number].rsplit("/", 1)[1])
    assert np.array_equal(data.train.images[number].numpy(), first[digit])


def test_the_normalisation_constants_are_those_of_the_training_images(data: Digits) -> None:
    pixels = data.train.images.double() / 255
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(data.mean).double(), atol=2e-4)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(data.std).double(), atol=2e-4)


def test_pseudo_domains_find_the_styles(data: Digits) -> None:
    table = torch.zeros(4, 4, dtype=torch.int64)
    assert data.pseudo_domains is not None
    for style, quarter in zip(data.train.domains, data.pseudo_domains, strict=True):
        table[style, quarter] += 1
    assert sorted(table.argmax(1).tolist()) == [0, 1, 2, 3]  # each style has a quarter of its own
    assert table.max(1).values.sum() / len(data.train) > 0.85


def test_images_of_a_style_vary(data: Digits) -> None:
    for style in range(4):
        images = data.train.images[data.train.domains == style]
        assert len(images.flatten(1).unique(dim=0)) == len(images)
        colours = images.float().mean((2, 3))
        assert (colours.std(0) > 3).any()  # of 255: tints differ from image to image


def test_batches_without_a_trainer(data: Digits) -> None:
    batch = next(iter(data.train_dataloader()))
    assert batch.classes.images([0, 9]).shape == (2, 8, 3, 32, 32)
    assert batch.domains is not None
    assert batch.domains.images([3]).shape == (1, 8, 3, 32, 32)
    images, labels, domains = next(iter(data.test_dataloader()))
    assert images.dtype == torch.float32
    assert len(images) == len(labels) == len(domains)
