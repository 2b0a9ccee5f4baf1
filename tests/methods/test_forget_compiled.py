"""What was compiled for a fit does not outlive it."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dam_lightning import Condenser, compilation
from tests.runs import OPTIONS, Run
from tests.tiny import tiny_data, tiny_trainer


@pytest.mark.parametrize("name", OPTIONS)
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
    run = Run(name, True, tmp_path, tmp_path / "experts", options=(("compile", True),))
    module = run.module()
    # In the middle of an outer loop of DC.
    trainer = tiny_trainer(tmp_path, max_steps=2)
    trainer.fit(module, datamodule=tiny_data(tmp_path))
    gc.collect()
    assert len(made) >= (2 if name == "MTT" else 3)
    assert not [reference for reference in made if reference() is not None]
