"""What was compiled for a fit does not outlive it."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dam_lightning import DC, DM, MTT, Condenser, compilation
from tests.tiny import SMALL_NETWORK, tiny_data, tiny_trainer

METHODS: dict[str, tuple[type[Condenser], dict[str, Any]]] = {
    "DM": (DM, {}),
    # Ends in the middle of an outer loop.
    "DC": (DC, {"outer_loop": 2, "inner_loop": 1}),
    "MTT": (MTT, {"student_steps": 1, "expert_epochs": 1, "max_start_epoch": 1}),
}


@pytest.mark.parametrize("name", METHODS)
def test_nothing_compiled_outlives_a_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made: list[weakref.ref[Callable[..., Any]]] = []

    def not_really(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        def compiled(*arguments: Any) -> Any:
            return function(*arguments)

        made.append(weakref.ref(compiled))
        return compiled

    monkeypatch.setattr(compilation, "_compile", not_really)
    # As on an accelerator.
    monkeypatch.setattr(Condenser, "_compiles_augmentation", True)
    method, options = METHODS[name]
    if method is MTT:
        options = {**options, "experts": {"count": 1, "folder": str(tmp_path / "experts")}}
    module = method(dam={"num_domains": 3}, backbone_args=SMALL_NETWORK, compile=True, **options)
    trainer = tiny_trainer(tmp_path, max_steps=3)
    trainer.fit(module, datamodule=tiny_data(tmp_path))
    gc.collect()
    assert len(made) >= (2 if method is MTT else 3)
    assert not [reference for reference in made if reference() is not None]
