"""Agreement of two groupings, against counting pairs."""

from itertools import combinations
from math import log

import pytest
import torch

from dam_lightning.data.agreement import domain_agreement


def rand_index(a: list[int], b: list[int]) -> float:
    """Adjusted for chance, from all pairs of images."""
    pairs = list(combinations(range(len(a)), 2))
    same_a = sum(a[i] == a[j] for i, j in pairs)
    same_b = sum(b[i] == b[j] for i, j in pairs)
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    expected = same_a * same_b / len(pairs)
    return (both - expected) / ((same_a + same_b) / 2 - expected)


def information(a: list[int], b: list[int]) -> float:
    """Mutual, normalised by the mean entropy."""

    def entropy(values: list[object]) -> float:
        shares = [values.count(value) / len(values) for value in set(values)]
        return -sum(share * log(share) for share in shares)

    joint = entropy(list(zip(a, b, strict=True)))
    return (entropy(a) + entropy(b) - joint) / ((entropy(a) + entropy(b)) / 2)


def test_measures_equal_those_of_pairs_and_entropies() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(0, 3, (40,), generator=generator)
    pseudo = torch.where(torch.arange(40) % 3 == 0, true, (true * 2 + torch.arange(40)) % 4)
    found = domain_agreement(pseudo, true, 4, ["a", "b", "c"])
    assert found.ari == pytest.approx(rand_index(pseudo.tolist(), true.tolist()))
    assert found.nmi == pytest.approx(information(pseudo.tolist(), true.tolist()))
    assert 0 < found.ari < found.nmi < 1
    for number in range(4):
        for domain in range(3):
            count = int(((pseudo == number) & (true == domain)).sum())
            assert found.table[number, domain] == count


def test_the_same_groups_in_another_order_agree_fully() -> None:
    true = torch.arange(12) // 4
    found = domain_agreement(2 - true, true, 3, ["a", "b", "c"])
    assert (found.ari, found.nmi) == (pytest.approx(1), pytest.approx(1))
    assert found.table.tolist() == [[0, 0, 4], [0, 4, 0], [4, 0, 0]]


def test_groups_and_domains_without_images_have_their_place() -> None:
    found = domain_agreement(torch.tensor([0, 2]), torch.tensor([1, 1]), 4, ["a", "b", "c"])
    assert found.table.tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert found.markdown().splitlines()[0] == "| pseudo-domain | a | b | c |"
    assert found.markdown().splitlines()[4] == "| 2 | 0 | 1 | 0 |"


def test_lengths_must_be_equal() -> None:
    with pytest.raises(ValueError, match="two vectors of the same length"):
        domain_agreement(torch.zeros(3).long(), torch.zeros(4).long(), 1, ["a"])
