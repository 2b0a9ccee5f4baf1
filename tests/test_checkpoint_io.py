"""Checkpoints that are damaged or of something else are named; those of any module are read."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO

from dam_lightning import DC, Evaluation, Experts
from dam_lightning.checkpoint_io import CheckedCheckpointIO
from tests.tiny import SMALL_NETWORK, SMALL_RECIPE, tiny_data, tiny_trainer

Checkpoint = dict[str, Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a condensation with masks, in the middle of an outer loop."""
    folder = tmp_path_factory.mktemp("saved")
    small: dict[str, Any] = {"backbone_args": SMALL_NETWORK, "recipe": SMALL_RECIPE}
    module = DC(outer_loop=3, inner_loop=1, dam={"num_domains": 2}, **small)
    trainer = tiny_trainer(folder, max_steps=2)
    trainer.fit(module, tiny_data(folder, zca=True))
    trainer.save_checkpoint(folder / "x.ckpt")
    return folder / "x.ckpt"


def read(path: Path) -> Checkpoint:
    return CheckedCheckpointIO(TorchCheckpointIO()).load_checkpoint(path, weights_only=True)


def evaluation() -> tuple[LightningModule, dict[str, Any]]:
    recipe: Any = {**SMALL_RECIPE, "backbone_args": SMALL_NETWORK}
    return Evaluation("random", ipc=1, recipe=recipe), {}


def experts() -> tuple[LightningModule, dict[str, Any]]:
    small: dict[str, Any] = {"backbone_args": SMALL_NETWORK, "batch_size": 10}
    return Experts(count=1, epochs=1, **small), {"max_epochs": -1}


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("make", [evaluation, experts])
def test_checkpoints_of_other_modules(tmp_path: Path, make: Any, weights_only: bool) -> None:
    module, options = make()
    trainer: Trainer = tiny_trainer(tmp_path, **options)
    trainer.fit(module, datamodule=tiny_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=weights_only)
    assert ("optimizer_states" in read(tmp_path / "x.ckpt")) != weights_only


@pytest.mark.parametrize(
    "name",
    ["state_dict", "loops", "callbacks", "hyper_parameters", "condenser", "epoch", "global_step"],
)
@pytest.mark.parametrize("value", ["text", [3], 2.5, None])
def test_what_is_of_another_kind(saved: Path, tmp_path: Path, name: str, value: Any) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    torch.save({**checkpoint, name: value}, tmp_path / "x.ckpt")
    with pytest.raises(
        ValueError, match=rf"x.ckpt is no checkpoint, or is damaged \({name} is not"
    ):
        read(tmp_path / "x.ckpt")


@pytest.mark.parametrize("name", ["images", "dam.logits"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(saved: Path, tmp_path: Path, name: str, value: float) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    checkpoint["state_dict"][name].view(-1)[-1] = value
    torch.save(checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(
        ValueError, match=rf"damaged \(state_dict: {name} has values that are not finite"
    ):
        read(tmp_path / "x.ckpt")


def test_bytes_that_changed(saved: Path, tmp_path: Path) -> None:
    """PyTorch alone would read other images."""
    path = tmp_path / "x.ckpt"
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as file:
        largest = max(file.infolist(), key=lambda entry: entry.file_size)
    # Its content lies behind a header of its own, and is longer than what pads that.
    content[largest.header_offset + largest.file_size] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True).keys()
    with pytest.raises(ValueError, match=r"damaged \(the checksum of .*/data/\d+ is wrong\)"):
        read(path)


@pytest.mark.parametrize("content", [{"images": torch.ones(2)}, [1, 2]])
def test_other_files_of_pytorch(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"damaged \(it holds something else\)\. Give the last"):
        read(tmp_path / "x.ckpt")
