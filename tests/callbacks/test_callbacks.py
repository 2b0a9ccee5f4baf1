"""What a person sees: pictures, progress, checkpoints in the run's folder, closing table."""

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from dam_lightning import DM
from dam_lightning.callbacks import (
    CondensedPicture,
    LastCheckpoint,
    MaskPictures,
    PseudoDomainPicture,
    RunSummary,
    StepProgress,
)
from tests.tiny import SMALL_NETWORK, tiny_data, tiny_trainer


def fit(folder: Path, callbacks: list[Any], steps: int = 6, dam: Any = None, **options: Any) -> DM:
    module = DM(dam=dam, backbone_args=SMALL_NETWORK, seed=0)
    trainer = tiny_trainer(folder, max_steps=steps, callbacks=callbacks, **options)
    trainer.fit(module, datamodule=tiny_data(folder))
    return module


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
    pictures = [CondensedPicture(), MaskPictures(), PseudoDomainPicture()]
    fit(folder, [LastCheckpoint(), *pictures, RunSummary()], dam={})
    printed = capsys.readouterr().out
    files = ["condensed.safetensors", "last.ckpt"]
    files += ["condensed.png", "masks.png", "views.png", "pseudo_domains.png"]
    for name in files:
        assert f" {(folder / name).relative_to(tmp_path)}\n" in printed
    assert "6 in" in printed


def test_the_closing_table_names_no_file_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fit(tmp_path, [CondensedPicture(), MaskPictures(), PseudoDomainPicture(), RunSummary()])
    printed = capsys.readouterr().out
    assert "condensed.png" in printed
    for name in ("masks.png", "views.png", "pseudo_domains.png", "last.ckpt"):
        assert name not in printed


class Stop(Callback):
    """Ends a fit in its tenth step, as a power cut would, or in another way."""

    def __init__(self, error: BaseException | None = None) -> None:
        self._error = error or RuntimeError("power cut")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 10:
            raise self._error


def test_whoever_interrupts_is_told_how_to_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lightning ignores further interrupts from then on.
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with caplog.at_level("INFO"), pytest.raises(SystemExit):
        fit(tmp_path, [LastCheckpoint(), Stop(KeyboardInterrupt())], steps=15)
    assert f"--ckpt_path {tmp_path / 'last.ckpt'} goes on after step 8" in caplog.text


def test_whoever_interrupts_before_a_checkpoint_is_told_that_there_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    module = DM(backbone_args=SMALL_NETWORK, seed=0)
    callbacks = [LastCheckpoint(), Stop(KeyboardInterrupt())]
    trainer = tiny_trainer(tmp_path, max_steps=15, callbacks=callbacks)
    with caplog.at_level("INFO"), pytest.raises(SystemExit):
        trainer.fit(module, datamodule=tiny_data(tmp_path, steps_per_epoch=12))
    assert "after step 10 and before its first checkpoint" in caplog.text
    assert "--data.steps_per_epoch" in caplog.text


@pytest.mark.parametrize(("steps", "share"), [(3, 0.5), (4, 0.5), (3, None)])
def test_a_fit_that_ends_before_its_first_validation_is_told(
    tmp_path: Path, steps: int, share: float | None
) -> None:
    """Where there is something to validate on."""
    module = DM(backbone_args=SMALL_NETWORK, seed=0, recipe={"num_networks": 1, "epochs": 1})
    trainer = tiny_trainer(tmp_path, max_steps=steps)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=tiny_data(tmp_path, validation_share=share))
    told = any("there is one every 4 steps, and the fit ends" in str(each.message) for each in said)
    assert told == (steps < 4 and share is not None)
    assert ("val/accuracy" in trainer.callback_metrics) == (steps == 4)


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
