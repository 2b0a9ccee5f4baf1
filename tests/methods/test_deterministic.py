"""Every method runs where PyTorch is told to refuse what is not deterministic."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.runs import OPTIONS, Run
from tests.tiny import tiny_data, tiny_trainer


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", OPTIONS)
def test_deterministic_algorithms(tmp_path: Path, name: str) -> None:
    """On a CPU the same bits as without; on CUDA, where it matters, the same operations."""
    found = []
    for deterministic in (False, True):
        module = Run(name, True, tmp_path, tmp_path / "experts").module()
        trainer = tiny_trainer(tmp_path, max_steps=3, deterministic=deterministic)
        trainer.fit(module, datamodule=tiny_data(tmp_path))
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        found.append(module.images.detach())
    assert torch.equal(*found)
