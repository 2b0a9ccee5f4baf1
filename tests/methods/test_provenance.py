"""A condensed set tells all that is needed to make it again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dam_lightning import DC, DM, MTT, CondensedSet, Condenser
from tests.tiny import SMALL_NETWORK, TinyData, tiny_trainer

METHODS: dict[str, tuple[type[Condenser], dict[str, Any]]] = {
    "DM": (DM, {}),
    "DC": (DC, {"outer_loop": 2, "inner_loop": 1}),
    "MTT": (MTT, {"student_steps": 1, "expert_epochs": 1, "max_start_epoch": 1}),
}


def fit(module: Condenser, folder: Path, trainer: dict[str, Any], **data: Any) -> CondensedSet:
    path = folder / "last.ckpt"
    fitted = tiny_trainer(folder, **trainer)
    fitted.fit(
        module,
        datamodule=TinyData(**data, cache_dir=str(folder / "cache")),
        ckpt_path=path if path.exists() else None,
    )
    fitted.save_checkpoint(path)
    return CondensedSet.load(folder / "condensed.safetensors")


@pytest.mark.parametrize("resumed", [False, True], ids=["in one go", "resumed"])
@pytest.mark.parametrize("name", METHODS)
def test_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, resumed: bool
) -> None:
    """From its metadata alone, where another seed is set; the seed was the run's."""
    method, options = METHODS[name]
    if method is MTT:
        options = {**options, "experts": {"count": 1}}

    def make() -> Condenser:
        return method(ipc=2, dam={"num_domains": 3}, backbone_args=SMALL_NETWORK, **options)

    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    first = tmp_path / "first"
    if resumed:
        fit(make(), first, {"max_steps": 3}, batch_real=5)
        monkeypatch.setenv("PL_GLOBAL_SEED", "12")
    made = fit(make(), first, {"max_steps": 5}, batch_real=5)
    monkeypatch.setenv("PL_GLOBAL_SEED", "13")
    config = made.metadata["config"]
    model = {**config["model"], "seed": made.metadata["seed"]}
    again = fit(method(**model), tmp_path / "again", config["trainer"], **config["data"])
    assert torch.equal(again.images, made.images)
    assert again.metadata["fingerprint"] == made.metadata["fingerprint"]
