"""In which precision networks compute, and what may not be said twice."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from dam_lightning import DM, Condenser
from dam_lightning.precision import has_fast_bfloat16
from tests.tiny import SMALL_NETWORK, tiny_data, tiny_trainer


class Seen(DM):
    """Remembers the precision of the embeddings."""

    def _embed(self, network: Any, images: torch.Tensor) -> torch.Tensor:
        self.dtype_seen = network.features(images[0]).dtype
        return super()._embed(network, images)


@pytest.mark.parametrize(
    ("precision", "trainer", "fast", "expected"),
    [
        (None, "32-true", True, torch.bfloat16),
        (None, "32-true", False, torch.float32),
        (None, "bf16-mixed", False, torch.bfloat16),
        (None, "64-true", True, torch.float64),
        ("float32", "32-true", True, torch.float32),
        ("bfloat16", "32-true", False, torch.bfloat16),
        ("bfloat16", "bf16-mixed", False, torch.bfloat16),
    ],
)
def test_of_the_embedding(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Any,
    trainer: Any,
    fast: bool,
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr("dam_lightning.precision.has_fast_bfloat16", lambda _: fast)
    module = Seen(backbone_args=SMALL_NETWORK, precision=precision)
    tiny_trainer(tmp_path, max_steps=1, precision=trainer).fit(
        module, datamodule=tiny_data(tmp_path)
    )
    assert module.dtype_seen == expected
    assert module.images.dtype == (torch.float64 if trainer == "64-true" else torch.float32)


@pytest.mark.parametrize(
    ("precision", "trainer"),
    [("float32", "bf16-mixed"), ("float32", "64-true"), ("bfloat16", "64-true")],
)
def test_contradictions(tmp_path: Path, precision: Any, trainer: Any) -> None:
    module = DM(backbone_args=SMALL_NETWORK, precision=precision)
    with pytest.raises(MisconfigurationException, match="leave one of them out"):
        tiny_trainer(tmp_path, max_steps=1, precision=trainer).fit(
            module, datamodule=tiny_data(tmp_path)
        )


def test_unknown() -> None:
    with pytest.raises(ValueError, match="precision must be float32 or bfloat16, got 'half'"):
        DM(precision="half")  # type: ignore[arg-type]


def test_a_long_run_is_compiled_and_a_short_one_is_not(tmp_path: Path) -> None:
    module: Condenser = DM(backbone_args=SMALL_NETWORK)
    assert not module.compiles
    module.trainer = tiny_trainer(tmp_path, max_steps=10)
    assert not module.compiles
    module.trainer = tiny_trainer(tmp_path, max_steps=20_000)
    assert module.compiles
    assert not DM(compile=False).compiles


@pytest.mark.parametrize(
    ("epochs", "batches", "worth"),
    [(2, 100, False), (10, 100, True), (-1, 100, True), (2, float("inf"), True)],
)
def test_a_run_of_epochs_has_their_steps(epochs: int, batches: float, worth: bool) -> None:
    module: Condenser = DM(backbone_args=SMALL_NETWORK)
    trainer = SimpleNamespace(max_steps=-1, max_epochs=epochs, num_training_batches=batches)
    module.trainer = trainer  # type: ignore[assignment]
    assert module.compiles == worth


@pytest.mark.parametrize(("flag", "fast"), [("avx512_bf16", True), ("avx2", False)])
def test_processors(monkeypatch: pytest.MonkeyPatch, flag: str, fast: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {flag: True})
    assert has_fast_bfloat16(torch.device("cpu")) == fast
    assert not has_fast_bfloat16(torch.device("mps"))
