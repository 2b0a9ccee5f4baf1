"""Every method runs where PyTorch is told to refuse what is not deterministic."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.runs import OPTIONS, Run
from tests.tiny import tiny_data, tiny_trainer

REFUSED_ON_CUDA = re.compile(
    r"(_?adaptive_(avg|max)_pool[23]d|avg_pool3d|max_pool3d_with_indices|fractional_max_pool[23]d"
    r"|upsample_\w+|(reflection|replication)_pad[123]d|grid_sampler_[23]d|_?ctc_loss)_backward"
    r"|max_unpool[23]d|nll_loss2d_\w+|put_?|histc|kthvalue|median|cumsum|scatter_reduce"
)
"""Names of operations that ``torch.use_deterministic_algorithms`` refuses on CUDA, by its
documentation; a few of them only sometimes. Not bincount, which is refused with weights alone."""


class Names(TorchDispatchMode):
    """Collects the operations that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


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


@pytest.mark.parametrize("name", OPTIONS)
def test_no_fit_needs_what_cuda_refuses(tmp_path: Path, name: str) -> None:
    """With its experts and the training of its networks."""
    module = Run(name, True, tmp_path, tmp_path / "experts").module()
    data = tiny_data(tmp_path)
    with Names() as names:
        tiny_trainer(tmp_path, max_steps=3).fit(module, datamodule=data)
    # The backward was seen too, in which most of those refused are.
    assert "convolution_backward" in names.seen
    assert not {seen for seen in names.seen if REFUSED_ON_CUDA.fullmatch(seen)}


def test_what_cuda_refuses_would_be_seen() -> None:
    images = torch.ones(1, 1, 4, 4, requires_grad=True)
    with Names() as names:
        torch.nn.functional.adaptive_avg_pool2d(images, 2).sum().backward()
        images.detach().cumsum(0)
    found = {seen for seen in names.seen if REFUSED_ON_CUDA.fullmatch(seen)}
    assert found == {"_adaptive_avg_pool2d_backward", "cumsum"}
