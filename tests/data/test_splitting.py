"""Images held out by chance."""

import pytest
import torch

from dam_lightning.data.splitting import check_share, held_out

LABELS = torch.tensor([0] * 20 + [1] * 20 + [2] * 7)
DOMAINS = torch.tensor(([0] * 10 + [1] * 10) * 2 + [0, 1, 1, 0, 0, 0, 0])


def test_every_cell_gives_its_share() -> None:
    chosen = held_out(LABELS, DOMAINS, 0.2, 0, "s")
    for label in range(3):
        for domain in range(2):
            cell = LABELS.eq(label) & DOMAINS.eq(domain)
            assert int(chosen[cell].sum()) == {2: 1, 5: 1, 10: 2}[int(cell.sum())]


def test_one_of_two_is_held_out_but_not_the_only_one() -> None:
    labels = torch.tensor([0, 1, 1])
    assert held_out(labels, labels * 0, 0.1, 0, "s").sum() == 1
    assert not held_out(labels, labels * 0, 0.1, 0, "s")[0]


@pytest.mark.parametrize("share", [0.001, 0.5, 0.6, 0.999])
def test_no_share_leaves_nothing(share: float) -> None:
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    chosen = held_out(labels, labels * 0, share, 0, "s")
    counts = labels[chosen].bincount(minlength=3).tolist()
    assert counts == [0, 1, 1 if share == 0.001 else 2]


def test_the_choice_depends_on_seed_and_stream_and_on_its_cell_only() -> None:
    chosen = held_out(LABELS, DOMAINS, 0.4, 0, "s")
    assert torch.equal(chosen, held_out(LABELS, DOMAINS, 0.4, 0, "s"))
    assert not torch.equal(chosen, held_out(LABELS, DOMAINS, 0.4, 1, "s"))
    assert not torch.equal(chosen, held_out(LABELS, DOMAINS, 0.4, 0, "t"))
    kept = LABELS != 1
    assert torch.equal(held_out(LABELS[kept], DOMAINS[kept], 0.4, 0, "s"), chosen[kept])


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_shares_that_leave_nothing_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="test_share must be above 0 and below 1"):
        check_share("test_share", share)
