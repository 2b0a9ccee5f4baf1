"""A condensed set tells all that is needed to make it again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from dam_lightning import DC, DM, MTT, CondensedSet, Condenser
from tests.tiny import SMALL_NETWORK, SMALL_RECIPE, TinyData, tiny_trainer

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
    clipping = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}
    if resumed:
        fit(make(), first, {"max_steps": 3, **clipping}, batch_real=5)
        monkeypatch.setenv("PL_GLOBAL_SEED", "12")
    made = fit(make(), first, {"max_steps": 5, **clipping}, batch_real=5)
    assert "resumed" not in made.metadata
    monkeypatch.setenv("PL_GLOBAL_SEED", "13")
    config = made.metadata["config"]
    model = {**config["model"], "seed": made.metadata["seed"]}
    again = fit(method(**model), tmp_path / "again", config["trainer"], **config["data"])
    assert torch.equal(again.images, made.images)
    assert again.metadata["fingerprint"] == made.metadata["fingerprint"]


CHANGES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"lr_images": 2.0}, {}, {"lr_images": 1.0}),
    ({"dam": {"num_domains": 3, "weight": 0.2}}, {}, {"dam.weight": None}),
    (
        {},
        {"gradient_clip_val": 0.5},
        {"trainer.gradient_clip_val": None, "trainer.gradient_clip_algorithm": None},
    ),
]


@pytest.mark.parametrize(("options", "trainer", "was"), CHANGES, ids=["lr", "weight", "clipping"])
def test_arguments_that_were_changed_on_the_way(
    tmp_path: Path, options: dict[str, Any], trainer: dict[str, Any], was: dict[str, Any]
) -> None:
    """A set tells of them, whatever comes after; a ledger has no command for it."""

    def make(**changed: Any) -> DM:
        shared: dict[str, Any] = {"backbone_args": SMALL_NETWORK, "recipe": SMALL_RECIPE}
        return DM(**{"dam": {"num_domains": 3}, "seed": 0, **shared, **changed})

    assert "resumed" not in fit(make(), tmp_path, {"max_steps": 2}).metadata
    # What changes speed and memory alone is nobody's business.
    fit(make(max_images=7), tmp_path, {"max_steps": 3})
    for steps in (5, 6):
        made = fit(make(**options), tmp_path, {"max_steps": steps, **trainer})
        assert made.metadata["resumed"] == [{"step": 3, "was": was}]
    module = make(**options, ledger=str(tmp_path / "ledger.csv"))
    data = TinyData(cache_dir=str(tmp_path / "cache"))
    with pytest.raises(MisconfigurationException, match=r"no command makes these images.* step 3"):
        tiny_trainer(tmp_path, **trainer).test(module, data, tmp_path / "last.ckpt")
