"""Means and standard errors, beside what was worked out by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from dam_lightning.report.estimates import combined, of_paper, of_rows, paired_gain, paper_gain
from dam_lightning.report.paper import Figure, figures
from tests.report.ledgers import rows


def figure(dam: str) -> Figure:
    """28.7 ± 0.5, with DAM 34.7 ± 1.2."""
    (found,) = (
        each
        for each in figures()
        if (each.table, each.dataset, each.ipc, each.method, each.dam)
        == ("2", "PACS", "1", "DM", dam)
    )
    return replace(
        found, accuracy={"0": "28.7", "1": "34.7"}[dam], std={"0": "0.5", "1": "1.2"}[dam]
    )


def test_one_seed_has_the_spread_of_its_networks(tmp_path: Path) -> None:
    found = of_rows(rows(tmp_path, {"accuracy": "31.5", "deviation": "2.00", "networks": 5}))
    assert (found.mean, found.spread, found.error) == (31.5, 2, 1)


@pytest.mark.parametrize("changes", [{"deviation": "nan"}, {"networks": 1, "deviation": "0.00"}])
def test_a_spread_that_is_not_known(tmp_path: Path, changes: dict[str, object]) -> None:
    found = of_rows(rows(tmp_path, changes))
    assert (found.mean, found.spread, found.error) == (30, None, None)


def test_several_seeds_have_the_spread_of_their_means(tmp_path: Path) -> None:
    means = [("30", 0), ("31", 1), ("35", 2)]
    found = of_rows(rows(tmp_path, *({"accuracy": mean, "seed": seed} for mean, seed in means)))
    # Deviations -2, -1, 3: squares 4 + 1 + 9 over 2.
    assert found.mean == pytest.approx(32)
    assert found.spread == pytest.approx(math.sqrt(7))
    assert found.error == pytest.approx(math.sqrt(7 / 3))


def test_the_paper_has_ten_networks() -> None:
    found = of_paper(figure("0"))
    assert (found.mean, found.spread) == (28.7, 0.5)
    assert found.error == pytest.approx(0.5 / 3)  # ten networks less one
    bare = of_paper(replace(figure("0"), std=""))
    assert (bare.mean, bare.spread, bare.error) == (28.7, None, None)


def test_errors_are_combined() -> None:
    assert combined(0.3, 0.4) == pytest.approx(0.5)
    assert combined(None, 0.4) is None
    assert combined(0.3, None) is None


def test_a_gain_is_paired_by_seed(tmp_path: Path) -> None:
    base = [("30", 0), ("31", 1), ("35", 2)]
    dam = [("34", 1), ("40", 2), ("99", 5)]
    both = rows(tmp_path, *({"accuracy": mean, "seed": seed} for mean, seed in base + dam))
    found = paired_gain(both[:3], both[3:])
    # 3 and 5: mean 4, deviation sqrt(2), over sqrt(2) seeds.
    assert found is not None
    assert found.mean == pytest.approx(4)
    assert found.error == pytest.approx(1)
    # Of one seed: 3 / 5 and 4 / 5 combined.
    one = {"accuracy": "30", "deviation": "3", "networks": 26}
    two = {"accuracy": "32.5", "deviation": "4", "networks": 26}
    pair = rows(tmp_path / "one", one, two)
    gain = paired_gain(pair[:1], pair[1:])
    assert gain is not None
    assert gain.mean == pytest.approx(2.5)
    assert gain.error == pytest.approx(1)
    assert paired_gain(both[:1], both[3:]) is None


def test_the_gain_of_the_paper() -> None:
    found = paper_gain(figure("0"), figure("1"))
    assert found.mean == pytest.approx(6)
    # 0.5 ** 2 + 1.2 ** 2 = 1.3 ** 2
    assert found.error == pytest.approx(1.3 / 3)
    assert paper_gain(replace(figure("0"), std=""), figure("1")).error is None
