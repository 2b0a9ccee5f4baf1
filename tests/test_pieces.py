"""How many images are computed at once."""

import pytest
import torch

from dam_lightning.pieces import images_at_once


@pytest.mark.parametrize(
    ("side", "limit", "expected"),
    [(32, 256, 32), (32, 7, 7), (64, 256, 8), (28, 256, 41), (512, 256, 1), (16, 4096, 128)],
)
def test_on_a_cpu_what_fits_into_its_caches(side: int, limit: int, expected: int) -> None:
    assert images_at_once(torch.device("cpu"), side, side, limit) == expected


def test_elsewhere_the_limit() -> None:
    assert images_at_once(torch.device("cuda", 0), 32, 32, 1024) == 1024
