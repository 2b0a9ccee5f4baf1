"""What a person sees: pictures, progress, checkpoints in the run's folder, closing table."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from dam_lightning import DM, CondensedSet
from dam_lightning.callbacks import CondensedPicture, LastCheckpoint, RunSummary, StepProgress
from dam_lightning.callbacks.picture import save_picture
from tests.tiny import SMALL_NETWORK, tiny_data, tiny_trainer


def fit(folder: Path, callbacks: list[Any], steps: int = 6, **options: Any) -> DM:
    module = DM(backbone_args=SMALL_NETWORK, seed=0)
    trainer = tiny_trainer(folder, max_steps=steps, callbacks=callbacks, **options)
    trainer.fit(module, datamodule=tiny_data(folder))
    return module


def condensed_set(ipc: int, num_classes: int, size: int = 8, channels: int = 3) -> CondensedSet:
    """Image i of class c has the value (10 c + i) / 1000 everywhere."""
    labels = torch.arange(num_classes).repeat_interleave(ipc)
    values = (10 * labels + torch.arange(ipc).repeat(num_classes)) / 1000
    images = values.view(-1, 1, 1, 1).expand(-1, channels, size, size).contiguous()
    names = [str(number) for number in range(num_classes)]
    metadata = {"class_names": names, "mean": [0.0] * channels, "std": [1.0] * channels}
    return CondensedSet(images, labels, metadata)


def test_a_picture_has_a_column_for_each_class(tmp_path: Path) -> None:
    save_picture(condensed_set(ipc=3, num_classes=4, size=128), tmp_path / "p.png")
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("L"))
    assert pixels.shape == (3 * 130 + 2, 4 * 130 + 2)
    for row in range(3):
        for column in range(4):
            value = pixels[row * 130 + 60, column * 130 + 60]
            assert value == pytest.approx(255 * (10 * column + row) / 1000, abs=1)
    assert pixels[0, 0] == 255


@pytest.mark.parametrize(("ipc", "num_classes", "channels"), [(50, 100, 3), (1, 2, 1), (2, 10, 3)])
def test_pictures_of_other_shapes(
    tmp_path: Path, ipc: int, num_classes: int, channels: int
) -> None:
    """Large sets are shown in part; small images are enlarged."""
    save_picture(condensed_set(ipc, num_classes, 8, channels), tmp_path / "p.png")
    width, height = Image.open(tmp_path / "p.png").size
    zoom = 16 if num_classes <= 20 else 1
    assert width == zoom * (min(num_classes, 50) * 10 + 2)
    assert height == zoom * (min(ipc, 10) * 10 + 2)


def test_classes_with_fewer_images_leave_places_empty(tmp_path: Path) -> None:
    whole = condensed_set(ipc=2, num_classes=2, size=128)
    short = CondensedSet(whole.images[:3], whole.labels[:3], whole.metadata)
    save_picture(short, tmp_path / "p.png")
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("L"))
    assert pixels[190, 60] < 10
    assert pixels[190, 190] == 255


@pytest.mark.parametrize("logger", [False, CSVLogger, TensorBoardLogger])
def test_the_files_of_a_run_lie_in_its_folder(tmp_path: Path, logger: Any) -> None:
    if logger is TensorBoardLogger:
        pytest.importorskip("tensorboard")
    made = logger(tmp_path) if logger else False
    module = fit(tmp_path, [LastCheckpoint(), CondensedPicture()], logger=made)
    folder = Path(made.log_dir) if made else tmp_path
    names = {path.name for path in folder.iterdir()}
    assert {"last.ckpt", "last.safetensors", "condensed.safetensors", "condensed.png"} <= names
    assert not list(tmp_path.rglob("epoch*"))
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6
    assert torch.equal(saved["state_dict"]["images"], module.images.detach())
    assert set(saved["state_dict"]) == {"images", "labels"}


def test_progress_in_lines(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Where the output is no terminal."""
    fit(tmp_path, [StepProgress(line_every=0.0)], enable_progress_bar=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines][:6] == [f"step {n}/6" for n in range(1, 7)]
    assert all("steps/s" in line and "loss" in line for line in lines)


def test_progress_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    fit(tmp_path, [StepProgress()], enable_progress_bar=True)
    printed = capsys.readouterr().out
    assert "6/6" in printed
    assert "steps/s" in printed


def test_the_closing_table_names_the_files_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 30)
    monkeypatch.chdir(tmp_path)
    fit(folder, [LastCheckpoint(), CondensedPicture(), RunSummary()])
    printed = capsys.readouterr().out
    for name in ("condensed.safetensors", "condensed.png", "last.ckpt"):
        assert f"{folder.name}/{name}\n" in printed
    assert "6 in" in printed


class Stop(Callback):
    """Ends a fit as a power cut would."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 10:
            raise RuntimeError("power cut")


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    """Epochs have four steps, so the state of step 8 is there, and leads to the same bits."""
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, [LastCheckpoint(), Stop()], steps=15)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 8
    module = DM(backbone_args=SMALL_NETWORK, seed=0)
    trainer = tiny_trainer(tmp_path, max_steps=15, callbacks=[LastCheckpoint()])
    trainer.fit(module, datamodule=tiny_data(tmp_path), ckpt_path=tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 15
    unbroken = fit(tmp_path / "unbroken", [], steps=15)
    assert torch.equal(module.images, unbroken.images)
