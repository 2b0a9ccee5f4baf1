"""Draws of real images, the batches made of them, and the loaders."""

import numpy as np
import pytest
import torch

from dam_lightning.data.groups import GroupedBatch, GroupedLoader, GroupIndex, Groups, TestLoader
from dam_lightning.data.normalisation import Normalisation
from dam_lightning.data.resident import Split
from dam_lightning.functional import Whitening

LABELS = torch.tensor([2, 0, 1, 2, 0, 2, 2, 0, 2, 2, 1, 0, 2])  # sizes 4, 2, 7
NAMES = ("ant", "bee", "cat")
MEAN, STD = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.1]).view(3, 1, 1)
NORMALISATION = Normalisation(MEAN, STD)


def make_split(number: int) -> Split:
    pixels = np.random.default_rng(1).integers(0, 256, (number, 3, 4, 5), dtype=np.uint8)
    labels = torch.arange(number) % 3
    return Split(torch.from_numpy(pixels), labels, labels // 2, [str(n) for n in range(number)])


def normalised(split: Split, indices: torch.Tensor) -> np.ndarray:
    pixels = split.images.numpy()[indices.numpy()].astype(np.float64)
    return (pixels / 255 - MEAN.numpy()) / STD.numpy()


def batch_of(step: int) -> GroupedBatch:
    indices, counts = GroupIndex(LABELS, NAMES).draw(2, 0, "s", step)
    return GroupedBatch(step, Groups(make_split(13), indices, counts, NORMALISATION), None)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 7, 256])
def test_draws_are_from_the_group_without_replacement(batch_size: int) -> None:
    index = GroupIndex(LABELS, NAMES)
    for step in range(20):
        indices, counts = index.draw(batch_size, 0, "s", step)
        assert indices.dtype == counts.dtype == torch.int64
        assert indices.shape == (3, min(batch_size, 7))  # no padding that no group needs
        assert counts.tolist() == [min(batch_size, size) for size in (4, 2, 7)]
        for group, (row, count) in enumerate(zip(indices, counts.tolist(), strict=True)):
            assert (LABELS[row] == group).all()  # the padding too
            assert len(set(row[:count].tolist())) == count


def test_every_image_is_drawn_as_often_as_the_others() -> None:
    index = GroupIndex(LABELS, NAMES)
    drawn = torch.zeros(13)
    for step in range(2000):
        indices, _ = index.draw(2, 0, "s", step)
        drawn.index_add_(0, indices.flatten(), torch.ones(6))
    expected = torch.tensor([2 / 4, 2 / 2, 2 / 7])[LABELS] * 2000
    assert torch.allclose(drawn, expected, atol=5 * (2000 * 0.25) ** 0.5)


def test_a_draw_depends_on_seed_stream_step_and_group_only() -> None:
    index = GroupIndex(LABELS, NAMES)
    first = index.draw(4, 7, "s", 30)[0]
    for step in range(5):
        index.draw(4, 7, "s", step)
    torch.manual_seed(3)
    np.random.seed(3)
    assert torch.equal(index.draw(4, 7, "s", 30)[0], first)
    assert torch.equal(GroupIndex(LABELS, NAMES).draw(4, 7, "s", 30)[0], first)
    for other in ((8, "s", 30), (7, "t", 30), (7, "s", 31)):
        assert not torch.equal(index.draw(4, *other)[0], first)


def test_the_draw_of_a_group_does_not_depend_on_the_other_groups() -> None:
    everything = GroupIndex(LABELS, NAMES).draw(3, 0, "s", 1)[0]
    keep = LABELS != 1
    without = LABELS[keep].where(LABELS[keep] == 0, 1)  # the cats become group 1, the bees go
    index = GroupIndex(torch.cat([without, torch.tensor([2])]), NAMES)
    assert torch.equal(keep.nonzero()[:, 0][index.draw(3, 0, "s", 1)[0][0]], everything[0])


def test_groups_of_equal_size_are_drawn_differently() -> None:
    index = GroupIndex(torch.arange(300) // 100, NAMES)
    indices = index.draw(100, 0, "s", 0)[0] - torch.tensor([[0], [100], [200]])
    assert len({tuple(row) for row in indices.tolist()}) == 3


def test_an_empty_group_is_named() -> None:
    with pytest.raises(ValueError, match="no training images in: bee"):
        GroupIndex(torch.tensor([0, 2, 2]), NAMES)


def test_a_label_without_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match="run from 0 to 3, but there are 3 groups"):
        GroupIndex(torch.tensor([0, 1, 2, 3]), NAMES)


@pytest.mark.parametrize(
    "rows", [[2, 0], [1], [], range(3), range(1, 3), range(0, 3, 2), torch.tensor([2, 1])]
)
def test_images_are_those_of_the_rows_normalised(rows: list[int] | range | torch.Tensor) -> None:
    split = make_split(13)
    indices, counts = GroupIndex(LABELS, NAMES).draw(5, 0, "s", 0)
    groups = Groups(split, indices, counts, NORMALISATION)
    images = groups.images(rows)
    chosen = indices[torch.as_tensor(list(rows), dtype=torch.int64)]
    assert images.dtype == torch.float32
    assert images.shape == (len(rows), 5, 3, 4, 5)
    np.testing.assert_allclose(images.numpy(), normalised(split, chosen), rtol=0, atol=1e-5)


def test_only_the_rows_asked_for_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = []
    gather = Split.gather

    def spy(split: Split, indices: torch.Tensor) -> torch.Tensor:
        gathered.append(indices.numel())
        return gather(split, indices)

    monkeypatch.setattr(Split, "gather", spy)
    batch = batch_of(0)
    assert gathered == []
    batch.classes.images([1])
    assert gathered == [2]


@pytest.mark.parametrize("rows", [[3], [-1], range(2, 4)])
def test_groups_that_do_not_exist_are_refused(rows: list[int] | range) -> None:
    with pytest.raises(IndexError, match="of 3 groups"):
        batch_of(0).classes.images(rows)


def test_a_loader_goes_on_counting_where_it_stopped() -> None:
    loader = GroupedLoader(batch_of, 3, lambda: None)
    assert len(loader) == 3
    assert [batch.step for batch in loader] == [0, 1, 2]
    iterator = iter(loader)
    assert next(iterator).step == 3
    assert [batch.step for batch in loader] == [4, 5, 6]


def test_a_loader_goes_on_from_a_saved_state() -> None:
    loader, resumed = (
        GroupedLoader(batch_of, 3, lambda: None),
        GroupedLoader(batch_of, 3, lambda: None),
    )
    for _ in range(2):
        list(loader)
    resumed.load_state_dict(loader.state_dict())
    assert [batch.step for batch in resumed] == [6, 7, 8]


def test_a_loader_begins_with_the_global_step() -> None:
    steps = iter([5, 2])
    loader = GroupedLoader(batch_of, 2, lambda: next(steps))
    assert [batch.step for batch in loader] == [5, 6]
    assert [batch.step for batch in loader] == [2, 3]


@pytest.mark.parametrize("world_size", [1, 3, 11])
def test_test_loaders_share_a_split_out(world_size: int) -> None:
    split = make_split(10)
    seen = []
    for rank in range(world_size):
        loader = TestLoader(split, 4, NORMALISATION, rank, world_size)
        share = torch.arange(10)[rank::world_size]
        batches = list(loader)
        assert len(batches) == len(loader) == -(-len(share) // 4)
        for number, (images, labels, domains) in enumerate(batches):
            part = share[4 * number : 4 * number + 4]
            np.testing.assert_allclose(images.numpy(), normalised(split, part), atol=1e-5)
            assert torch.equal(labels, split.labels[part])
            assert torch.equal(domains, split.domains[part])
        seen.extend(share.tolist())
    assert sorted(seen) == list(range(10))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("images_on", ["cuda", "cpu"])
@pytest.mark.parametrize("zca", [False, True])
def test_the_host_never_waits_for_the_gpu(images_on: str, zca: bool) -> None:
    split = make_split(13).to(torch.device(images_on))
    # A matrix that does what mean and std of the channels do.
    mean, std = (part.expand(3, 4, 5).flatten() for part in (MEAN, STD))
    whitening = Whitening(mean, torch.diag(1 / std)) if zca else None
    normalisation = Normalisation(MEAN, STD, whitening, torch.device("cuda"))
    normalisation(split.images)  # libraries wait when they are first used
    index = GroupIndex(LABELS, NAMES)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        indices, counts = index.draw(4, 0, "s", 0)
        groups = Groups(split, indices, counts, normalisation)
        images = groups.images([2, 0])
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    expected = normalised(make_split(13), indices[[2, 0]])
    np.testing.assert_allclose(images.cpu().numpy(), expected, atol=1e-5)
